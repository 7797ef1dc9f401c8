"""A sharded model may be called in parts."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import LlamaConfig, LlamaForCausalLM

from inscp.model.blocks import blocks
from inscp.model.device import inference_loss
from inscp.model.parallel import gathered_root, shard
from inscp.records import PackedBatch


def test_blocks_of_a_model_that_is_asked_before_its_root_share_the_streams_of_the_root(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
        root = inference_loss(LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2)))
        ids = torch.arange(8)[None]
        expected = root.model(ids).logits
        shard(root, init_device_mesh("cpu", (1,)), None, reshard_after_forward=True, cpu_offload=False)
        with gathered_root(root), torch.no_grad():
            assert torch.equal(root.model(ids).logits, expected)
        contexts = {id(module._get_fsdp_state()._comm_ctx) for module in (root, *blocks(root.model))}
        assert len(contexts) == 1
        nlls = root(PackedBatch(ids, ids, ids, (8,), step_targets=1, step_tokens=8), per_target=True)  # as a whole, too
        assert len(nlls) == 8
    finally:
        dist.destroy_process_group()
