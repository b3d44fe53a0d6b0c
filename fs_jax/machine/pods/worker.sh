# On every host: the code, an environment, and a service that trains. systemd
# restarts it after a crash or a reboot, at most $restarts times a day.
# Defined above: name, restarts, grace, multihost, command.
set -euo pipefail
mkdir -p "$HOME/$name"
cd "$HOME/$name"
tar -xzf "../$name.tar.gz"
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python=3.11 .venv
python3 -m uv pip install --quiet --python=.venv/bin/python \
  -c constraints.txt -e '.[tpu]'
# Otherwise a process without its TPU would silently train on the CPU.
cat >start.sh <<START
export PATH="$PWD/.venv/bin:\$PATH"
export JAX_PLATFORMS=tpu,cpu FS_JAX_MULTIHOST=$multihost
exec ${command[*]@Q}
START
sudo tee "/etc/systemd/system/$name.service" >/dev/null <<UNIT
[Unit]
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=1d
StartLimitBurst=$((restarts + 1))
[Service]
User=$USER
WorkingDirectory=$PWD
ExecStart=/bin/bash start.sh
Restart=on-failure
RestartSec=10
RestartPreventExitStatus=2 3
KillMode=mixed
TimeoutStopSec=$grace
[Install]
WantedBy=multi-user.target
UNIT
sudo systemctl daemon-reload
sudo systemctl enable --quiet "$name"
sudo systemctl reset-failed "$name" 2>/dev/null || true
sudo systemctl restart "$name"
