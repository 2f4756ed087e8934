"""torchrun that ends as its ranks did: `python -m trainer.agent [torchrun's options] SCRIPT ...`.

torchrun itself ends with code 1 whatever happened, shows a traceback of its own on top of the ranks', and takes seconds
to take its interpreter apart once a rank is lost. This ends at once, with the code of the rank that failed first.
"""

import os
import signal
import sys
from typing import NoReturn

from trainer.signals import PARENT, end_with_parent


def main(argv: list[str]) -> NoReturn:
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import main as run

    from trainer.meeting import register

    register()
    code = 0
    try:
        run(argv)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        print(f"rank {rank} was the first to leave: it {how}", file=sys.stderr)
    except SignalException as error:
        code = -error.sigval
    except (RendezvousError, DistError) as error:
        code = 1
        why = str(error.__cause__ or error).splitlines()
        print(f"the nodes did not meet, or lost each other: {why[0] if why else type(error).__name__}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    end_with_parent()
    os.environ[PARENT] = str(os.getpid())
    main(sys.argv[1:])
