"""Launchers for training on many hosts, one file for each engine.

Its files, lower ones first:

    job     a training job, and the checks that all engines share
    tpu_vm  Cloud TPU VMs: a shell script and a systemd service
    gke     Kubernetes: a JobSet
    slurm   SLURM: an sbatch script
    local   several processes on this machine, restarted together
"""
