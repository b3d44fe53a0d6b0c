# One process per GPU. JAX takes SLURM_LOCALID as the number of a process's only
# GPU, so every task must see all GPUs of its node: no binding.
# Defined above: restarts, patience, command.
set -uo pipefail
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}"
# One process may end with bad input, and its peers by SIGABRT, as they miss it;
# srun reports the last one only. So each process writes its own code.
export codes="$SLURM_JOB_NAME-$SLURM_JOB_ID.codes"
mkdir -p "$codes"
rm -f "$codes"/*
# shellcheck disable=SC2016 # it is the task's shell that expands them
task='trap : TERM; "$@"; code=$?; echo $code >"$codes/$SLURM_PROCID"; exit $code'
told=0
stopped=0
# Not `kill`: srun turns its own SIGTERM into a SIGKILL of all tasks. Tasks that
# train save within seconds; those that prepare data or judge ignore the signal,
# and have nothing to save that the next start would not make again.
# shellcheck disable=SC2329 # it is the trap that calls it
stop() {
  told=1
  stopped=1
  scancel --signal=TERM "$SLURM_JOB_ID"
  (sleep "$patience" && scancel --signal=KILL "$SLURM_JOB_ID") >/dev/null 2>&1 &
  late=$!
}
trap stop TERM
# When a process ends, its peers have a minute to end by themselves.
srun --label --gpu-bind=none --kill-on-bad-exit=0 --wait=60 \
  bash -c "$task" task "${command[@]}" &
step=$!
wait "$step"
code=$?
while [ "$told" = 1 ]; do # the signal ended `wait`, not the training
  told=0
  wait "$step"
  code=$?
done
telling=(75 3 2)
if [ "$stopped" = 1 ]; then
  kill "$late" 2>/dev/null
  [ "$code" = 0 ] || code=75
else # one that was killed may leave others with what looks like bad input
  telling+=(137)
fi
for known in "${telling[@]}"; do
  grep -qx "$known" "$codes"/* 2>/dev/null && code=$known
done

again() {
  echo "exit code $code: queued again"
  scontrol requeue "$SLURM_JOB_ID" || exit "$code"
  exit 0
}
case "$code" in
  0 | 2 | 3) exit "$code" ;; # done, bad input, diverged: nothing to repeat
  75) again ;;               # told to stop
esac
crashes="$SLURM_JOB_NAME-$SLURM_JOB_ID.crashes"
echo "$code" >>"$crashes"
[ "$(wc -l <"$crashes")" -gt "$restarts" ] || again
echo "crashed more than $restarts times: $crashes has the exit codes"
exit "$code"
