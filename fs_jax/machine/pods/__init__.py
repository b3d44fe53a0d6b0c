"""What starts a training on many hosts, one file for each engine.

job     a training, and what all engines check of it
tpu_vm  Cloud TPU VMs: a shell script and a systemd service
gke     Kubernetes: a JobSet
slurm   SLURM: an sbatch script
local   several processes on this machine, started again together
"""
