"""Runs tests/distributed/work.py with weights sharded on CPUs, which accelerate leaves alone without being made to."""

import accelerate.state
import work
from accelerate.utils import DistributedType

_begin = accelerate.state.AcceleratorState.__init__


def begin(self, *arguments, fsdp_plugin=None, **named):
    """Take the plugin on a CPU, as accelerate does on an accelerator."""
    _begin(self, *arguments, fsdp_plugin=fsdp_plugin, **named)
    if fsdp_plugin is not None:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin
        accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def make_accelerate_shard():
    """Have weights sharded on CPUs from now on, in this process."""
    accelerate.state.AcceleratorState.__init__ = begin


if __name__ == "__main__":
    import sys
    from pathlib import Path

    make_accelerate_shard()
    work.main(Path(sys.argv[1]), False)
