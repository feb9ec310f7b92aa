#!/usr/bin/env bash
# Everything that needs a GPU, in one command: BUDGET=240 bash benchmarks/gpu_run.sh for the useful half, 540 (nine
# minutes) for all of it.
#
# Needs python3 with torch >= 2.11, triton, numpy and pytest, and no network. Writes to $OUT (default
# benchmarks/results/gpu-run): results.json (for benchmarks/report.py), tune.json, host.json, agent.json, train.json,
# compose.json, log.txt (all output), summary.txt (a line per part), ncu.csv where ncu can read counters. Kernels and
# the agent's steps are compiled first, in parallel, beside the tests. Useful parts come first; each has a time limit,
# from what it took on an H100 with 16 cores, and may fail without stopping the next. Exit code: 0, or 1 where a part
# failed, ran out of time or was not reached. The device's settings are left alone.
#
#   PYTHON=python3   the interpreter
#   BUDGET=540       seconds for everything; below 400, tuning gets less and the slow parts are left out
#   PARTS="ops step" only these parts (install and environment always run)
#   TESTS=90         seconds for the tests
#   AGENT="--only compiled kept --batches 16 32 --precision bf16"   of the agent's steps only these
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

PYTHON=${PYTHON:-python3}
BUDGET=${BUDGET:-540}
PARTS=${PARTS:-}
AGENT=${AGENT:-}
TESTS=${TESTS:-90}
OUT=${OUT:-benchmarks/results/gpu-run}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
LOG=$OUT/log.txt
SUMMARY=$OUT/summary.txt
: >"$LOG"
: >"$SUMMARY"
export PYTHONUNBUFFERED=1
unset TRITON_INTERPRET
status=0

note() { # one line for the summary, and the screen
  echo "$1" | tee -a "$SUMMARY"
}

wanted() { # whether a part is to run
  [[ -z $PARTS || $1 == install || $1 == environment || " $PARTS " == *" $1 "* ]]
}

part() { # part NAME LIMIT COMMAND...: run with a limit, log everything, show the end
  local name=$1 limit=$2 left=$((BUDGET - SECONDS)) began=$SECONDS code
  shift 2
  wanted "$name" || return 0
  if ((left < 10)); then
    note "$name: not reached, no time left"
    status=1
    return 1
  fi
  ((limit > left)) && limit=$left
  printf '\n===== %s: %s\n' "$name" "$*" >>"$LOG"
  timeout -k 5 "$limit" "$@" >"$OUT/part.txt" 2>&1
  code=$?
  cat "$OUT/part.txt" >>"$LOG"
  printf '\n===== %s\n' "$name"
  tail -n "${SHOW:-12}" "$OUT/part.txt"
  rm -f "$OUT/part.txt"
  case $code in
    0) note "$name: ok, $((SECONDS - began)) s" ;;
    124 | 137) note "$name: STOPPED at its limit of $limit s" ;;
    *) note "$name: FAILED with code $code, $((SECONDS - began)) s" ;;
  esac
  ((code == 0)) || status=1
  return $code
}

tool() { # part TOOL-dependent: a tool that is absent is a note, not a failure
  local name=$1 program=$3
  if command -v "$program" >/dev/null; then
    part "$@"
  else
    note "$name: $program is not installed"
  fi
}

whole() { # whole part ...: only where there is time for everything
  if ((BUDGET >= 400)); then
    "$@"
  fi
}

RUN=("$PYTHON" benchmarks/run.py --device cuda --update --json "$OUT/results.json")
EAGER=("a loop" "b grid_sample" "c reference" "e ours separate" "f ours fused")
WORKERS=() # of the tests, where pytest-xdist is there
"$PYTHON" -c 'import xdist, sys; sys.exit(not xdist.__version__)' 2>/dev/null && WORKERS=(-n 8)
METRICS=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum,smsp__inst_executed.sum
METRICS+=,l1tex__data_pipe_lsu_wavefronts.sum,l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum
METRICS+=,smsp__issue_active.avg.pct_of_peak_sustained_active
METRICS+=,smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio
METRICS+=,sm__warps_active.avg.pct_of_peak_sustained_active,launch__registers_per_thread

rm -f "$OUT/results.json"
part install 60 "$PYTHON" -m pip install -q --no-deps --no-build-isolation -e . || exit 1
part environment 30 "$PYTHON" -c '
import torch, triton
assert torch.cuda.is_available(), "no CUDA device"
p = torch.cuda.get_device_properties(0)
print(p.name, f"sm_{p.major}{p.minor}", p.multi_processor_count, "SMs, L2", p.L2_cache_size, "bytes")
print("torch", torch.__version__, "cuda", torch.version.cuda, "triton", triton.__version__)
' || exit 1
TUNE=120
((BUDGET < 400)) && TUNE=60
# the agent's steps compile beside the kernels and the tests, and are timed when this script lets go of the lock
exec 9>"$OUT/.lock" && flock 9
if ((BUDGET >= 400)) && wanted agent; then
  # shellcheck disable=SC2086  # AGENT is several words
  {
    "$PYTHON" benchmarks/agent_step.py --variants --lock "$OUT/.lock" --json "$OUT/agent.json" $AGENT
    echo "ended with code $?"
  } >"$OUT/agent.txt" 2>&1 9>&- &
fi
if wanted tune; then # all candidates now, while nothing is timed
  part compile 110 "$PYTHON" benchmarks/tune.py --compile
else
  part compile 60 "$PYTHON" benchmarks/tune.py --compile --first 0
fi
# with a kernel on the device: compile checks and what needs no GPU run elsewhere, and compiling is most of the time here
part tests "$TESTS" "$PYTHON" -m pytest tests/kernels -v --tb=short -p no:cacheprovider -p no:benchmark -o addopts="--import-mode=importlib -ra --strict-markers" -m "device and not proof" "${WORKERS[@]}"
flock -u 9
SHOW=60 whole part agent 150 bash -c 'tail --pid="$1" -f /dev/null; cat "$2"; grep -q "ended with code 0" "$2"' - "${!:-0}" "$OUT/agent.txt"
SHOW=40 part ops 50 "${RUN[@]}" --parts ops --batch 1 32 --frame-rates 50 --seconds 2 --providers "${EAGER[@]}"
SHOW=40 part kernels 30 "${RUN[@]}" --parts kernels
part host 30 "$PYTHON" benchmarks/host.py --json "$OUT/host.json"
SHOW=60 part tune "$TUNE" "$PYTHON" benchmarks/tune.py --seconds $((TUNE - 10)) --json "$OUT/tune.json"
SHOW=20 whole part compose 40 "$PYTHON" benchmarks/compose.py --seconds 0.5 --json "$OUT/compose.json"
SHOW=20 whole part train 110 "$PYTHON" benchmarks/agent_step.py --train --json "$OUT/train.json"
whole part step 100 "${RUN[@]}" --parts step --step-batch 16 --steps 4 --rounds 1
SHOW=30 whole tool ncu 60 ncu --profile-from-start off --clock-control none --target-processes all \
  --metrics "$METRICS" --csv --log-file "$OUT/ncu.csv" "$PYTHON" benchmarks/probe.py --dtypes tf32 bfloat16
whole tool memcheck 50 compute-sanitizer --tool memcheck --error-exitcode 9 "$PYTHON" benchmarks/probe.py --small
whole tool racecheck 40 compute-sanitizer --tool racecheck --error-exitcode 9 "$PYTHON" benchmarks/probe.py --small
SHOW=40 whole part compiled 110 "${RUN[@]}" --parts ops --batch 32 --frame-rates 50 --seconds 2
whole part attention 30 "${RUN[@]}" --parts attention --seconds 3
whole part scaling 60 "${RUN[@]}" --parts scaling --seconds 5

"$PYTHON" benchmarks/report.py "$OUT/results.json" >>"$LOG" 2>&1 && tail -n 5 "$LOG"
note "total: $SECONDS s; results in $OUT"
exit $status
