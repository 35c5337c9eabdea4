import os

import torch
from torch.distributed import rpc

rank = int(os.environ["RANK"])
rpc.init_rpc(f"worker{rank}", rank=rank, world_size=2)
result = rpc.rpc_sync(f"worker{1 - rank}", torch.add, args=(torch.ones(1), rank)).item() - rank
rpc.shutdown()
