# Creates the slices, and starts the worker's script on all of their hosts.
# Defined above: name, zone, create, config, worker.
set -euo pipefail
where=("--zone=$zone")
all=("${where[@]}" --node=all --worker=all)
tpus() { gcloud compute tpus queued-resources "$@"; }
state() {
  tpus describe "$name" "${where[@]}" --format='value(state.state)' \
    2>/dev/null || true
}

if ! git cat-file -e "HEAD:$config"; then
  echo "error: $config: must be in the last commit, which is what runs" >&2
  exit 2
fi
case "$(state)" in
  FAILED | SUSPENDED) # what is left of a slice that was taken away
    tpus delete "$name" "${where[@]}" --force --quiet ;;
esac
[ -n "$(state)" ] || tpus create "$name" "${where[@]}" "${create[@]}"
until now=$(state) && [ "$now" = ACTIVE ]; do
  case "$now" in
    '' | FAILED | SUSPENDED)
      echo "error: $name: ${now:-cannot be described}" >&2
      exit 1 ;;
  esac
  echo "$name: $now"
  sleep 30
done

sent=$(mktemp -d)
trap 'rm -r "$sent"' EXIT
git archive --format=tar.gz -o "$sent/$name.tar.gz" HEAD
tpus scp "$sent/$name.tar.gz" "$name:" "${all[@]}"
tpus ssh "$name" "${all[@]}" --command="$worker"
