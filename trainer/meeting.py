"""Where the agents of several nodes meet: torchrun's rendezvous, without the waits for a node that is lost."""

from torch.distributed.elastic.rendezvous import RendezvousParameters, rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

NAME = "nodes"


class Meeting(DynamicRendezvousHandler):
    """torchrun asks it ten times a second whether more nodes have come, and has it tell the others when it ends.

    Both wait for the node where the agents meet, a minute and longer, and meanwhile nobody looks after the ranks. The
    number of nodes is fixed, so there is nothing to ask; and the others notice by themselves.
    """

    def get_backend(self) -> str:
        return NAME

    def num_nodes_waiting(self) -> int:
        return 0

    def shutdown(self) -> bool:
        return True


def register() -> None:
    """Make it known to torchrun, as `--rdzv-backend`."""
    rendezvous_handler_registry.register(NAME, _meet)


def _meet(params: RendezvousParameters) -> Meeting:
    backend, store = create_backend(params)
    return Meeting.from_backend(params.run_id, store, backend, params.min_nodes, params.max_nodes, params.local_addr)
