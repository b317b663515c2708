#!/usr/bin/env bash
# Trains on GKE: fills launch/gke/tpu.yaml or gpu.yaml in and hands it to kubectl, of whatever cluster
# kubectl uses. launch/README.md explains how to make one; `run.sh --help` lists the settings.
set -euo pipefail

# That of macOS is of 2007.
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  printf '%s: expected bash 4.4 or later, got %s (brew install bash)\n' "$0" "$BASH_VERSION" >&2
  exit 2
fi

readonly SELF=gke/run.sh
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly HERE

usage() {
  cat <<'TEXT'
gke/run.sh COMMAND [SETTING]... [-- WHAT FOLLOWS]

  tpu       train on a TPU slice; what follows goes to pea-jax train
  gpu       train on GPU nodes; what follows goes to pea-jax train
  status    of the JobSet and its pods
  logs      of the first host; --follow goes on showing them
  stop      delete the JobSet: the run saves and ends. The same `tpu` or `gpu` goes on with it.

  setting             environment       default
  --name              NAME                                     of the JobSet
  --image             IMAGE                                    of launch/Dockerfile, pushed to a registry
  --workdir           WORKDIR                                  gs://BUCKET/RUN
  --config            CONFIG                                   configs/sdxl_zh.py
  --cache             CACHE             gs://BUCKET/compilation_cache
  --pod-account       POD_ACCOUNT       pea-jax                of Kubernetes, with rights to the bucket
  --accelerator       ACCELERATOR       tpu-v5-lite-podslice   the node pool's; gpu: nvidia-h100-80gb
  --topology          TOPOLOGY          4x4                    tpu: of the slice
  --hosts             HOSTS             by the topology        gpu: 1
  --chips-per-host    CHIPS_PER_HOST    4                      gpu: 8
  --max-restarts      MAX_RESTARTS      5                      after crashes; preemptions do not count
  --namespace         NAMESPACE         default
  --spot              SPOT=1            off                    on spot nodes
  --follow                                                     logs: until Ctrl-C
  --dry-run           DRY_RUN=1                                print the manifest and every command
TEXT
}

# fail STATUS WHAT...
fail() {
  local status=$1
  shift
  printf '%s %s: %s\n' "$SELF" "$COMMAND" "$*" >&2
  exit "$status"
}

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

call() {
  local status=0
  if [[ -n $DRY_RUN ]]; then
    printf '%s\n' "$(quoted "$@")"
    return
  fi
  "$@" || status=$?
  ((status == 0)) || fail "$status" "failed with status $status: $(quoted "${@:1:4}") ..."
}

# The words as a list of YAML, which takes JSON's strings; Kubernetes would put the value of a variable
# for $(NAME) in one.
listed() {
  local word text=''
  for word in "$@"; do
    [[ $word != *[[:cntrl:]]* ]] || fail 2 "expected arguments of one line each, got $(quoted "$word")"
    word=${word//\\/\\\\}
    # shellcheck disable=SC2016 # two and three characters
    word=${word//'$('/'$$('}
    text+=", \"${word//\"/\\\"}\""
  done
  printf '[%s]' "${text#, }"
}

need() {
  local variable missing=()
  for variable in "$@"; do
    [[ -n ${!variable} ]] || missing+=("--${variable,,} ($variable)")
  done
  ((${#missing[@]} == 0)) || fail 2 "missing $(printf '%s, ' "${missing[@]}" | sed 's/, $//')"
}

# What a manifest's lines are filled with, by name.
fill() {
  local text name value
  text=$(<"$HERE/$1.yaml")
  [[ -n $SPOT ]] || text=$(sed '/# spot$/d' <<<"$text")
  for name in NAME MAX_RESTARTS HOSTS POD_ACCOUNT ACCELERATOR TOPOLOGY IMAGE CHIPS_PER_HOST \
    DEVICES ARGUMENTS; do
    value=${!name}
    text=${text//"\${$name}"/"$value"}
  done
  printf '%s\n' "$text"
}

# A host has four chips; the smallest slices have one with fewer.
slice() {
  local sides chips=1 side
  [[ $TOPOLOGY =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || fail 2 "expected a --topology as 4x4, got '$TOPOLOGY'"
  IFS=x read -r -a sides <<<"$TOPOLOGY"
  for side in "${sides[@]}"; do chips=$((chips * side)); done
  CHIPS_PER_HOST=${CHIPS_PER_HOST:-$((chips < 4 ? chips : 4))}
  whole CHIPS_PER_HOST
  HOSTS=${HOSTS:-$((chips / CHIPS_PER_HOST))}
  whole HOSTS
  ((HOSTS * CHIPS_PER_HOST == chips)) ||
    fail 2 "a slice of $TOPOLOGY has $chips chips, not $HOSTS hosts of $CHIPS_PER_HOST"
}

whole() {
  [[ ${!1} =~ ^[1-9][0-9]*$ ]] || fail 2 "expected a whole number as $1, got '${!1}'"
}

train() {
  need NAME IMAGE WORKDIR CONFIG
  local kind=$1 bucket=${WORKDIR#gs://} device manifest
  shift
  [[ $NAME =~ ^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$ ]] ||
    fail 2 "expected a --name of lower-case letters, digits and hyphens, got '$NAME'"
  [[ $WORKDIR =~ ^gs://[a-z0-9][-a-z0-9._]+/.+$ ]] ||
    fail 2 "expected a --workdir gs://BUCKET/RUN, which every host reaches, got '$WORKDIR'"
  [[ -f $HERE/../../$CONFIG ]] ||
    fail 2 "expected a --config in the checkout, as configs/sdxl_zh.py, got '$CONFIG'"
  CACHE=${CACHE:-gs://${bucket%%/*}/compilation_cache}
  if [[ $kind == tpu ]]; then
    ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice} TOPOLOGY=${TOPOLOGY:-4x4}
    slice
  else
    ACCELERATOR=${ACCELERATOR:-nvidia-h100-80gb} HOSTS=${HOSTS:-1} CHIPS_PER_HOST=${CHIPS_PER_HOST:-8}
    whole HOSTS
    whole CHIPS_PER_HOST
  fi
  DEVICES=0
  for ((device = 1; device < CHIPS_PER_HOST; device++)); do DEVICES+=,$device; done
  # shellcheck disable=SC2034 # filled in by its name
  ARGUMENTS=$(listed train --distributed --config "$CONFIG" --workdir "$WORKDIR" \
    --config.train.compilation_cache="$CACHE" "$@")
  manifest=$(fill "$kind")
  # create, not apply: what runs already under this name is refused, not changed.
  if [[ -n $DRY_RUN ]]; then
    printf "kubectl --namespace=%s create --filename=- <<'YAML'\n%s\nYAML\n" "$NAMESPACE" "$manifest"
  else
    call kubectl --namespace="$NAMESPACE" create --filename=- <<<"$manifest"
  fi
}

status() {
  need NAME
  call kubectl --namespace="$NAMESPACE" get jobset "$NAME"
  call kubectl --namespace="$NAMESPACE" get pods --output=wide \
    --selector=jobset.sigs.k8s.io/jobset-name="$NAME"
}

logs() {
  need NAME
  local words=(--tail=100)
  [[ -z $FOLLOW ]] || words+=(--follow)
  call kubectl --namespace="$NAMESPACE" logs "${words[@]}" \
    --selector=jobset.sigs.k8s.io/jobset-name="$NAME",batch.kubernetes.io/job-completion-index=0
}

stop() {
  need NAME
  call kubectl --namespace="$NAMESPACE" delete jobset "$NAME" --cascade=foreground
}

main() {
  COMMAND=${1:-}
  case $COMMAND in
    -h | --help | help) usage; return ;;
    tpu | gpu | status | logs | stop) shift ;;
    '') usage >&2; exit 2 ;;
    *) fail 2 "no such command (--help lists them)" ;;
  esac
  NAME=${NAME:-} IMAGE=${IMAGE:-} WORKDIR=${WORKDIR:-} CONFIG=${CONFIG:-} CACHE=${CACHE:-}
  POD_ACCOUNT=${POD_ACCOUNT:-pea-jax} ACCELERATOR=${ACCELERATOR:-} TOPOLOGY=${TOPOLOGY:-}
  HOSTS=${HOSTS:-} CHIPS_PER_HOST=${CHIPS_PER_HOST:-} MAX_RESTARTS=${MAX_RESTARTS:-5}
  NAMESPACE=${NAMESPACE:-default} SPOT=${SPOT:-} DRY_RUN=${DRY_RUN:-} FOLLOW=''
  local flag variable
  while (($#)); do
    flag=${1%%=*}
    variable=${flag#--}
    variable=${variable//-/_}
    variable=${variable^^}
    case $flag in
      -h | --help) usage; return ;;
      --) shift; break ;;
      --spot | --dry-run | --follow)
        [[ $1 == "$flag" ]] || fail 2 "$flag takes no value"
        printf -v "$variable" 1
        shift ;;
      --name | --image | --workdir | --config | --cache | --pod-account | --accelerator | \
        --topology | --hosts | --chips-per-host | --max-restarts | --namespace)
        if [[ $1 == *=* ]]; then
          printf -v "$variable" '%s' "${1#*=}"
          shift
        else
          (($# > 1)) || fail 2 "$flag takes a value"
          printf -v "$variable" '%s' "$2"
          shift 2
        fi ;;
      *) fail 2 "no setting '$1' (--help lists them; what is for pea-jax follows --)" ;;
    esac
  done
  [[ $SPOT != 0 && $SPOT != false ]] || SPOT=''
  [[ $DRY_RUN != 0 && $DRY_RUN != false ]] || DRY_RUN=''
  whole MAX_RESTARTS
  [[ $COMMAND == tpu || $COMMAND == gpu ]] || (($# == 0)) || fail 2 "unexpected '$*'"
  [[ -n $DRY_RUN ]] || command -v kubectl >/dev/null ||
    fail 1 "no kubectl on PATH: https://kubernetes.io/docs/tasks/tools"
  case $COMMAND in
    tpu | gpu) train "$COMMAND" "$@" ;;
    status) status ;;
    logs) logs ;;
    stop) stop ;;
  esac
}

main "$@"
