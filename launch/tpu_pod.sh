#!/usr/bin/env bash
# One TPU slice of Cloud TPU VMs, from its creation to its deletion. launch/README.md is the guide;
# `tpu_pod.sh --help` lists the commands and settings.
#
# The script copies itself to the workers, where its last part (`on-worker`) does the work: gcloud
# then runs one short command that can be read, and typed.
set -euo pipefail

# macOS ships one of 2007.
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  printf '%s: expected bash 4.4 or later, got %s (brew install bash)\n' "$0" "$BASH_VERSION" >&2
  exit 2
fi

readonly SELF=${0##*/}
# The folder of this project on a worker, relative to its home.
readonly REMOTE=pea-jax
# The exit status of a worker that has a run already.
readonly BUSY=3

usage() {
  cat <<'TEXT'
tpu_pod.sh COMMAND [SETTING]... [-- WHAT FOLLOWS]

  create    ask for the slice (a queued resource) and wait until it is there
  setup     copy the checkout's last commit to every worker and install it
  train     start training on every worker, detached; what follows goes to pea-jax train
  status    the state of the slice, and of the run on each worker
  logs      the end of a worker's log; --follow goes on showing it
  stop      SIGTERM on every worker: the run saves and ends
  resume    after a preemption: the slice again, setup, and train with what follows as before
  sample    images on the slice, in WORKDIR/samples/TIME and fetched to --output; what follows goes
            to pea-jax sample
  export    the adapter, exported by one worker's CPU, fetched to --output
  delete    the slice, and with it all costs but the bucket's; asks unless --yes

  setting              environment        default
  --name               NAME                                        of the slice
  --project            PROJECT
  --zone               ZONE
  --accelerator-type   ACCELERATOR_TYPE                            v5litepod-16, v6e-8, v4-32, ...
  --runtime-version    RUNTIME_VERSION    by the accelerator type
  --spot               SPOT=1             off                      cheaper; may be taken away
  --service-account    SERVICE_ACCOUNT    the project's default    whose rights the workers have
  --create-options     CREATE_OPTIONS                              more for gcloud: '--network=N --reserved'
  --workdir            WORKDIR                                     gs://BUCKET/RUN
  --config             CONFIG                                      configs/sdxl_zh.py
  --cache              CACHE              gs://BUCKET/compilation_cache
  --pip-spec           PIP_SPEC           the checkout             'pea-jax[tpu,gcs]==0.1.0'
  --prompts            PROMPTS                                     sample: a file, one prompt a line
  --output             OUTPUT                                      sample, export: a folder to make here
  --worker             WORKER             0                        logs: which
  --poll               POLL               30                       seconds between two looks at the state
  --no-wait                                                        create: do not wait
  --follow                                                         logs: until Ctrl-C
  --yes                                                            delete: do not ask
  --dry-run            DRY_RUN=1                                   print every command, run none
TEXT
}

say() { printf '%s\n' "$*"; }

# fail STATUS WHAT...
fail() {
  local status=$1
  shift
  printf '%s %s: %s\n' "$SELF" "$COMMAND" "$*" >&2
  exit "$status"
}

# ---------------------------------------------------------------------------- commands as typed

# The words as a shell reads them back.
quoted() {
  local word text=''
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      text+=" $word"
    else
      text+=" '${word//\'/\'\\\'\'}'"
    fi
  done
  printf '%s' "${text# }"
}

# Run a command, or only print it. A failure ends the script with its status, in one line.
call() {
  local status=0
  if [[ -n $DRY_RUN ]]; then
    say "$(quoted "$@")"
    return
  fi
  "$@" || status=$?
  ((status == 0)) || [[ -z ${SILENT:-} ]] || exit "$status"
  ((status == 0)) || fail "$status" "failed with status $status: $(quoted "${@:1:5}") ..."
}

# tpus GROUP VERB ARGUMENT... : that command of gcloud, with project and zone.
tpus() {
  call gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"
}

# What gcloud prints, for decisions: the state of the slice or of its node, NONE where there is none.
# It asks by a list, in which nothing is no error. A passing failure of the network must not end a
# wait of hours: three in a row do.
look() {
  local group=$1 kind=$2 field=$3 tries=0 answer
  local ask=(gcloud compute tpus "$group" list --filter="name~/$kind/$NAME\$"
    --format="value($field)" --project="$PROJECT" --zone="$ZONE")
  if [[ -n $DRY_RUN ]]; then
    say "$(quoted "${ask[@]}")"
    return
  fi
  until answer=$("${ask[@]}"); do
    ((++tries < 3)) || fail 1 "gcloud cannot list $group in $ZONE of $PROJECT"
    sleep "$POLL"
  done
  printf '%s' "${answer:-NONE}"
}
slice_state() { look queued-resources queuedResources state.state; }
node_state() { look tpu-vm nodes state; }

# on WORKER VERB ARGUMENT... : the last part of this script, on a worker or on all.
on() {
  local worker=$1
  shift
  tpus tpu-vm ssh "$NAME" --worker="$worker" --quiet \
    --command="$(quoted bash "$REMOTE/tpu_pod.sh" on-worker "$@")"
}

# to_workers FILE NAME : copy a file into our folder on every worker.
to_workers() { tpus tpu-vm scp "$1" "$NAME:$REMOTE/$2" --worker=all --quiet; }

# ---------------------------------------------------------------------------- settings

runtime_of() {
  case $1 in
    v5litepod-*) say v2-alpha-tpuv5-lite ;;
    v5p-*) say v2-alpha-tpuv5 ;;
    v6e-*) say v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) say tpu-ubuntu2204-base ;;
  esac
}

# need FLAG... : every setting that the command cannot do without, all that are missing in one line.
need() {
  local flag variable missing=()
  for flag in "$@"; do
    variable=${flag//-/_}
    variable=${variable^^}
    [[ -n ${!variable} ]] || missing+=("--$flag ($variable)")
  done
  ((${#missing[@]} == 0)) || fail 2 "missing $(printf '%s, ' "${missing[@]}" | sed 's/, $//')"
}

check_settings() {
  [[ -z $NAME || $NAME =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    fail 2 "expected a --name of lower-case letters, digits and hyphens, got '$NAME'"
  [[ -z $WORKDIR || $WORKDIR =~ ^gs://[a-z0-9][-a-z0-9._]+/.+$ ]] ||
    fail 2 "expected a --workdir gs://BUCKET/RUN, which every worker reaches, got '$WORKDIR'"
  [[ $POLL =~ ^[0-9]+$ ]] || fail 2 "expected --poll in whole seconds, got '$POLL'"
  [[ $WORKER =~ ^([0-9]+|all)$ ]] || fail 2 "expected a --worker 0, 1, ... or all, got '$WORKER'"
  [[ -z $CONFIG || -f $ROOT/$CONFIG ]] ||
    fail 2 "expected a --config in the checkout, as configs/sdxl_zh.py, got '$CONFIG'"
  [[ -n $CACHE || -z $WORKDIR ]] || CACHE=gs://$(bucket)/compilation_cache
  [[ -n $RUNTIME_VERSION ]] || RUNTIME_VERSION=$(runtime_of "$ACCELERATOR_TYPE")
}

bucket() {
  local rest=${WORKDIR#gs://}
  say "${rest%%/*}"
}

check_output() {
  [[ ! -e $OUTPUT ]] || fail 1 "$OUTPUT is there already: give a new folder as --output"
}

# ---------------------------------------------------------------------------- the commands

create() {
  need name project zone accelerator-type runtime-version
  local more options=(--node-id="$NAME" --accelerator-type="$ACCELERATOR_TYPE"
    --runtime-version="$RUNTIME_VERSION")
  [[ -z $SPOT ]] || options+=(--spot)
  [[ -z $SERVICE_ACCOUNT ]] || options+=(--service-account="$SERVICE_ACCOUNT"
    --scopes=https://www.googleapis.com/auth/cloud-platform)
  read -r -a more <<<"$CREATE_OPTIONS"
  tpus queued-resources create "$NAME" "${options[@]}" "${more[@]}" --quiet
  [[ -n $NO_WAIT ]] || wait_until_active
}

wait_until_active() {
  local last='' now
  if [[ -n $DRY_RUN ]]; then
    say "# every $POLL seconds, until the state is ACTIVE:"
    slice_state
    return
  fi
  while :; do
    now=$(slice_state) || exit
    [[ $now == "$last" ]] || say "$NAME: $now"
    last=$now
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | NONE)
        fail 1 "$NAME is $now and will not become ACTIVE: $SELF resume asks for it anew" ;;
    esac
    sleep "$POLL"
  done
}

setup() {
  need name project zone
  local archive
  if [[ -n $DRY_RUN ]]; then
    archive=/tmp/pea-jax.tar.gz
  else
    archive=$(mktemp -d)/pea-jax.tar.gz
    # shellcheck disable=SC2064 # the folder as it is named now
    trap "rm -rf '${archive%/*}'" EXIT
    if [[ -n $(git -C "$ROOT" status --porcelain) ]]; then
      say "note: the workers get the last commit; what is not committed stays here"
    fi
  fi
  call git -C "$ROOT" archive --format=tar.gz --output="$archive" HEAD
  tpus tpu-vm ssh "$NAME" --worker=all --quiet --command="mkdir -p $REMOTE"
  to_workers "$ROOT/launch/tpu_pod.sh" tpu_pod.sh
  to_workers "$archive" checkout.tar.gz
  on all install "$PIP_SPEC"
}

train() {
  need name project zone workdir config
  on all start train --distributed --config "$CONFIG" --workdir "$WORKDIR" \
    --config.train.compilation_cache="$CACHE" "$@"
  [[ -n $DRY_RUN ]] || say "started on every worker: $SELF logs --follow, $SELF status"
}

# Nothing is started where any worker still runs: the others would wait for it in vain.
refuse_second() {
  local status=0
  if [[ -n $DRY_RUN ]]; then
    say "# refused where a worker has a run that goes on:"
  fi
  (SILENT=1 && on all idle) || status=$?
  case $status in
    0) return ;;
    "$BUSY") fail 1 "a run goes on: see $SELF status, or end it with $SELF stop" ;;
    # No such file: the workers are new, and resume sets them up.
    127) [[ $COMMAND == resume ]] || fail 1 "the workers have nothing yet: $SELF setup" ;;
    *) fail "$status" "cannot ask every worker whether it is idle: status $status" ;;
  esac
}

status() {
  need name project zone
  if [[ -n $DRY_RUN ]]; then
    slice_state
    on all state
    return
  fi
  local now
  now=$(slice_state) || exit
  say "$NAME: $now"
  [[ $now != ACTIVE ]] || on all state
}

logs() {
  need name project zone
  if [[ -n $FOLLOW ]]; then
    on "$WORKER" log --follow
  else
    on "$WORKER" log
  fi
}

stop() {
  need name project zone
  on all stop
}

resume() {
  need name project zone accelerator-type runtime-version workdir config
  if [[ -n $DRY_RUN ]]; then
    slice_state
    node_state
    say "# unless it is ACTIVE with its node READY:"
    tpus queued-resources delete "$NAME" --force --quiet
    create
  elif is_whole; then
    refuse_second
  else
    create_again
  fi
  setup
  train "$@"
}

is_whole() {
  local now node
  now=$(slice_state) || exit
  say "$NAME: $now"
  [[ $now == ACTIVE ]] || return 1
  # A preempted spot node can be gone before the queued resource reports it.
  node=$(node_state) || exit
  [[ $node == READY ]] || say "its node: $node"
  [[ $node == READY ]]
}

create_again() {
  local now
  now=$(slice_state) || exit
  while [[ $now == SUSPENDING || $now == DELETING ]]; do
    sleep "$POLL"
    now=$(slice_state) || exit
  done
  case $now in
    NONE) create ;;
    ACTIVE | SUSPENDED | FAILED)
      tpus queued-resources delete "$NAME" --force --quiet
      create ;;
    # Still in the queue: requested, and not created yet.
    *) wait_until_active ;;
  esac
}

sample() {
  need name project zone workdir output
  check_output
  local words=()
  if [[ -n $PROMPTS ]]; then
    [[ -f $PROMPTS ]] || fail 2 "no file $PROMPTS"
    to_workers "$PROMPTS" prompts.txt
    words=(--prompts ../prompts.txt)
  fi
  # Every host of a slice takes part, and writes its own images: to where all of them reach.
  local folder=$WORKDIR/samples/${SAMPLES:-$(date -u +%Y%m%dT%H%M%SZ)}
  on all run sample --distributed --workdir "$WORKDIR" --output "$folder" "${words[@]}" "$@"
  call mkdir -p "$OUTPUT"
  call gcloud storage rsync --recursive "$folder" "$OUTPUT"
}

export_adapter() {
  need name project zone workdir output
  check_output
  on 0 export --workdir "$WORKDIR" --output ../output "$@"
  tpus tpu-vm scp --recurse "$NAME:$REMOTE/output" "$OUTPUT" --worker=0 --quiet
}

delete() {
  need name project zone
  local answer=''
  if [[ -z $YES && -z $DRY_RUN ]]; then
    printf 'Delete %s in %s of %s? What its disks hold is lost, the bucket stays. [y/N] ' \
      "$NAME" "$ZONE" "$PROJECT"
    read -r answer || true
    [[ $answer == [yY] || $answer == yes ]] || fail 1 "$NAME was not deleted"
  fi
  tpus queued-resources delete "$NAME" --force --quiet
  say "# what still costs in this zone (nothing, if the lists are empty):"
  tpus queued-resources list
  tpus tpu-vm list
}

# ---------------------------------------------------------------------------- on a worker

# In ~/pea-jax: src (the checkout), venv, train.log, output; pid and status of the run, and a lock
# that whatever uses the TPU holds as long as it lives, whoever started it and however it ends.

on_worker() {
  local verb=${1:-}
  COMMAND="$verb ($(hostname))"
  (($# == 0)) || shift
  cd "$HOME/$REMOTE"
  case $verb in
    install) worker_install "$@" ;;
    start) worker_start "$@" ;;
    idle) worker_lock ;;
    state) worker_state ;;
    log) worker_log "$@" ;;
    stop) worker_stop ;;
    run) worker_run "$@" ;;
    export) worker_export "$@" ;;
    *) fail 2 "no such thing to do on a worker" ;;
  esac
}

# Hold the lock as descriptor 9, or fail.
worker_lock() {
  exec 9>>lock
  flock --nonblock 9 || fail "$BUSY" "a run goes on here"
}

# The images have Python 3.10; uv brings one that pea-jax runs on.
worker_install() {
  local spec=$1
  worker_lock
  rm -rf src.new
  mkdir src.new
  tar -xzf checkout.tar.gz -C src.new
  rm -rf src
  mv src.new src
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet uv
  [[ -x venv/bin/python ]] || python3 -m uv venv --quiet --python 3.12 venv
  if [[ -n $spec ]]; then
    python3 -m uv pip install --quiet --python venv/bin/python "$spec"
  else
    python3 -m uv pip install --quiet --python venv/bin/python --editable './src[tpu,gcs]'
  fi
  say "$(hostname): installed"
}

# setsid and nohup: neither a dropped connection nor its end reaches the run.
worker_start() {
  worker_lock
  rm -f status pid
  cd src
  # shellcheck disable=SC2016 # for the inner shell
  setsid nohup bash -c '
    "$@" &
    echo $! >../pid
    wait $!
    echo $? >../status
  ' start ../venv/bin/python launch/supervise.py ../venv/bin/pea-jax "$@" \
    </dev/null >>../train.log 2>&1 &
  say "$(hostname): started"
}

worker_is_idle() {
  [[ ! -e lock ]] || flock --nonblock lock true
}

worker_state() {
  local what
  if ! worker_is_idle; then
    what="running (process $(cat pid 2>/dev/null || echo unknown))"
  elif [[ -f status ]]; then
    case $(cat status) in
      0) what="finished" ;;
      75) what="stopped before its last step, saved: resume goes on" ;;
      *) what="failed with status $(cat status): see the log" ;;
    esac
  elif [[ -f pid ]]; then
    what="ended without a word, as after a restart of the machine: resume goes on"
  else
    what="nothing was started"
  fi
  say "$(hostname): $what; $(tail -n 1 train.log 2>/dev/null || true)"
}

worker_log() {
  if [[ ${1:-} == --follow ]]; then
    exec tail -n 100 -F train.log
  fi
  tail -n 100 train.log
}

worker_stop() {
  if worker_is_idle; then
    say "$(hostname): nothing runs"
    return
  fi
  kill -TERM "$(cat pid)" 2>/dev/null || true
  flock --timeout 600 lock true || fail 1 "it has not ended after ten minutes"
  worker_state
}

worker_run() {
  worker_lock
  rm -rf output
  cd src
  ../venv/bin/pea-jax "$@"
}

# One process alone cannot use a TPU that spans hosts, and exporting needs none.
worker_export() {
  rm -rf output
  cd src
  JAX_PLATFORMS=cpu ../venv/bin/pea-jax export "$@"
}

# ---------------------------------------------------------------------------- the command line

main() {
  COMMAND=${1:-}
  case $COMMAND in
    -h | --help | help) usage; return ;;
    on-worker) shift; on_worker "$@"; return ;;
    create | setup | train | status | logs | stop | resume | sample | export | delete) shift ;;
    '') usage >&2; exit 2 ;;
    *) fail 2 "no such command (--help lists them)" ;;
  esac
  ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  NAME=${NAME:-} PROJECT=${PROJECT:-} ZONE=${ZONE:-}
  ACCELERATOR_TYPE=${ACCELERATOR_TYPE:-} RUNTIME_VERSION=${RUNTIME_VERSION:-}
  SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-} CREATE_OPTIONS=${CREATE_OPTIONS:-}
  WORKDIR=${WORKDIR:-} CONFIG=${CONFIG:-} CACHE=${CACHE:-}
  PIP_SPEC=${PIP_SPEC:-} PROMPTS=${PROMPTS:-} OUTPUT=${OUTPUT:-} WORKER=${WORKER:-0} POLL=${POLL:-30}
  SPOT=${SPOT:-} DRY_RUN=${DRY_RUN:-} NO_WAIT='' FOLLOW='' YES=''
  local flag variable
  while (($#)); do
    flag=${1%%=*}
    case $flag in
      -h | --help) usage; return ;;
      --) shift; break ;;
      --spot | --dry-run | --no-wait | --follow | --yes)
        [[ $1 == "$flag" ]] || fail 2 "$flag takes no value"
        variable=${flag#--}
        variable=${variable//-/_}
        printf -v "${variable^^}" 1
        shift ;;
      --name | --project | --zone | --accelerator-type | --runtime-version | --service-account | \
        --create-options | --workdir | --config | --cache | --pip-spec | --prompts | --output | --worker | --poll)
        variable=${flag#--}
        variable=${variable//-/_}
        if [[ $1 == *=* ]]; then
          printf -v "${variable^^}" '%s' "${1#*=}"
          shift
        else
          (($# > 1)) || fail 2 "$flag takes a value"
          printf -v "${variable^^}" '%s' "$2"
          shift 2
        fi ;;
      *) fail 2 "no setting '$1' (--help lists them; what is for pea-jax follows --)" ;;
    esac
  done
  # Several values mean off.
  [[ $SPOT != 0 && $SPOT != false ]] || SPOT=''
  [[ $DRY_RUN != 0 && $DRY_RUN != false ]] || DRY_RUN=''
  check_settings
  case $COMMAND in
    train | resume | sample | export) ;;
    *) (($# == 0)) || fail 2 "unexpected '$*'" ;;
  esac
  [[ -n $DRY_RUN ]] || command -v gcloud >/dev/null ||
    fail 1 "no gcloud on PATH: https://cloud.google.com/sdk/docs/install"
  case $COMMAND in
    create) create ;;
    setup) setup ;;
    train)
      need name project zone workdir config
      refuse_second
      train "$@" ;;
    status) status ;;
    logs) logs ;;
    stop) stop ;;
    resume) resume "$@" ;;
    sample) sample "$@" ;;
    export) export_adapter "$@" ;;
    delete) delete ;;
  esac
}

main "$@"
