"""python -m coursekit.diffusion FLAGS: train a diffusion model on a folder of pictures, and draw from it. --help lists the flags.

    python -m coursekit.diffusion --data_path data/afhq/train --save_folder results/cats --time_steps 50 --train_steps 10000 \
        --image_size 32 --batch_size 32 --learning_rate 1e-3 --unet_dim 16

On several GPUs: accelerate launch -m coursekit.diffusion FLAGS. On several CPU processes: torchrun --nproc-per-node 2 -m
coursekit.diffusion FLAGS, since accelerate launch --cpu starts one process only, however many it is asked for.
"""

from __future__ import annotations

import os
import shlex
import sys

from coursekit.data import DataError
from coursekit.diffusion.settings import SettingsError, parse
from coursekit.training import CheckpointError, NonFinite


def main(arguments: list[str] | None = None) -> int:
    """0 when done; 2 for wrong settings, 1 for what went wrong on the way, 130 for Ctrl-C or kill; then a message on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        settings = parse(arguments)
        from coursekit.diffusion.train import train  # after the flags: --help need not wait for it

        train(settings)
    except KeyboardInterrupt as stop:
        again = arguments if arguments[-1:] == ["--resume"] else [*arguments, "--resume"]   # the last one counts
        _tell(f"{str(stop) or 'stopped at once'}.\nTo go on: {_launcher(int(os.environ.get('LOCAL_WORLD_SIZE', 1)))} {shlex.join(again)}")
        return 130
    except SettingsError as error:
        _tell(f"{error}\nAll flags: {_launcher()} --help")
        return 2
    except DataError as error:
        _tell(f"{error}\nThe flags for what is read: --data_path, --data_class and --skip_bad")
        return 1
    except (CheckpointError, NonFinite, OSError) as error:
        _tell(str(error))
        return 1
    return 0


def _launcher(processes: int = 1) -> str:
    several = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    return shlex.join([sys.executable, *several, "-m", "coursekit.diffusion"])   # to be pasted: the environment need not be active


def _tell(message: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
