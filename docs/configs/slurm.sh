#!/bin/bash
# The five folds of PASTIS-HD on nodes of eight GPUs. A job that is interrupted continues from its latest checkpoint:
#
#   DATA=/path/to/PASTIS-HD sbatch docs/configs/slurm.sh
#
# More arguments are passed to the training: sbatch docs/configs/slurm.sh --model.weights FILE.ckpt
#SBATCH --job-name=pastis-hd
#SBATCH --array=1-5
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=9
#SBATCH --time=20:00:00
#SBATCH --requeue
#SBATCH --signal=SIGUSR1@120
set -euo pipefail
run=runs/pastis-hd-fold$SLURM_ARRAY_TASK_ID
mkdir -p "$run"

# Before the time limit, SLURM sends SIGUSR1, and Lightning saves a checkpoint and requeues the job. After a crash or a
# preemption, `--ckpt_path last` continues from the newest checkpoint. Without one, training starts.
srun torchgeo fit \
  --config docs/configs/pastis-hd.yaml --config docs/configs/hardware/eight-80gb.yaml \
  --data.root "$DATA" --data.fold "$SLURM_ARRAY_TASK_ID" \
  --trainer.default_root_dir "$run" \
  --trainer.logger TensorBoardLogger --trainer.logger.save_dir "$run" \
  --trainer.logger.name '' --trainer.logger.version '' \
  --ckpt_path last "$@"

srun --nodes=1 --ntasks=1 torchgeo test \
  --config "$run/config.yaml" --trainer.devices 1 --trainer.strategy auto --ckpt_path "$run/checkpoints/best.ckpt"
