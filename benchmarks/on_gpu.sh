#!/bin/bash
# All that is to be known of a GPU, in about seven minutes: whether it computes what the CPU does, and how fast.
#
#   benchmarks/on_gpu.sh                      everything; what was found is in $OUT, by default gpu-figures/
#   benchmarks/on_gpu.sh checks step          these parts alone: checks demo step large embedding compiled memory
#   SHAPE=tiny BATCH=4 LARGE=16 DEVICE=cpu benchmarks/on_gpu.sh      to try the script itself on the CPU
cd "$(dirname "$0")/.." || exit 1
export OUT=${OUT:-gpu-figures} HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
shape=${SHAPE:-ViT-L/14} batch=${BATCH:-128} large=${LARGE:-4096} middle=$((${BATCH:-128} * 4))
parts=${*:-checks demo step large embedding compiled memory}
work=$(mktemp -d)
mkdir -p "$OUT"
failed=()
[ -n "$DEVICE" ] && export SAFE_CLIP_TEST_DEVICE=$DEVICE

part() { # NAME SECONDS COMMAND...: runs a part where it is asked for, and goes on where it fails
  local name=$1 seconds=$2 start=$SECONDS status
  shift 2
  [[ " $parts " == *" ${name%%-*} "* ]] || return 0
  echo "== $name"
  timeout -k 5 "$seconds" "$@" >"$work/$name.log" 2>&1
  status=$?
  tr '\r' '\n' <"$work/$name.log" | grep -vE '%[|]|it/s|s/it|examples/s|Warning|warnings.warn|^\.*s*\.*\{|^ *$' | tail -n 60 | cut -c1-300
  echo "== $name: status $status, $((SECONDS - start)) s"
  [ $status = 0 ] || failed+=("$name")
}

demo() { # where FLAGS...: trains the bundled demo for 20 steps and measures it
  local folder=$work/$1
  shift
  python3 train.py demo --max_steps 20 --eval_splits validation --output_dir "$folder" \
    --disable_tqdm true --cache_images off "$@" || return
  python3 eval.py --model "$folder" --baseline demo --dataset demo --splits validation --tasks retrieval \
    --precision float32 --cache_dir "$folder-cache" --output_dir "$folder-eval"
}

both() { # the same on the CPU and on the GPU, one beside the other
  (export CUDA_VISIBLE_DEVICES=; demo cpu --use_cpu true) >"$work/demo-cpu.log" 2>&1 &
  demo gpu
  wait $! || tail -n 20 "$work/demo-cpu.log"
  cp "$work/gpu/results.json" "$OUT/demo-gpu.json"
  python3 - "$work" <<'PYTHON'
import json, sys
cpu, gpu = (json.load(open(f"{sys.argv[1]}/{where}/results.json")) for where in ("cpu", "gpu"))
worst = 0
for when in ("before", "after"):
    for split, figures in cpu[when].items():
        for name, value in figures.items():
            other = gpu[when][split][name]
            worst = max(worst, abs(value - other))
            print(f"  {when:6} {split} {name}: CPU {value:.3f}, GPU {other:.3f}")
print("pass" if worst <= 0.02 else "FAIL", f"largest difference {worst:.3f} (at most 0.02)")
sys.exit(worst > 0.02)
PYTHON
}
export -f demo both
export work

step="python3 benchmarks/step.py --shape $shape"
SAFE_CLIP_CHECKS=$OUT/checks.jsonl part checks 150 \
  python3 -m pytest -q -s -p no:cacheprovider -m gpu tests/test_gpu.py
part step 150 $step --batch_size "$batch" --steps 4 --json "$OUT/step.json" \
  --ways paper default "default, no states" script "paper, float32"
part large-512 60 $step --batch_size "$batch" --steps 2 --syncs 1 --contrastive "$middle" --ways default \
  --json "$OUT/large-512.json"
part large-4096 100 $step --batch_size "$batch" --steps 2 --syncs 0 --contrastive "$large" --ways paper \
  --json "$OUT/large-4096.json"
part embedding 50 python3 benchmarks/gpu_embedding.py --shape "$shape" --json "$OUT/embedding.json" \
  --count $((batch * 16))
part demo 120 bash -c both
part compiled 100 $step --batch_size "$batch" --steps 4 --syncs 0 --ways "paper, compiled" --json "$OUT/compiled.json"
part memory 80 python3 benchmarks/memory.py --shape "$shape" --chunk "$batch" --contrastive "$((batch * 2))"
rm -rf "$work"
echo "== ${SECONDS} s in all; failed: ${failed[*]:-none}"
[ ${#failed[@]} = 0 ]
