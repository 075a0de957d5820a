"""vLLM's offloading to the host's memory for its CPU back end.

vLLM 0.28 has all of it but the copying: `CPUOffloadingSpec.get_worker` raises an exception on any platform that is neither like CUDA nor XPU, since
its worker copies by device streams and events, which the CPU has none of. Here the scheduler, the manager of the offloaded blocks and the events are
vLLM's, and the worker copies memory. Runs in the engine's environment, which finds it by `spec_module_path`.
"""

from typing import Any

import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, GPULoadStoreSpec, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class CopyingWorker(OffloadingWorker):
    """Copies whole blocks at once: a transfer has ended when it is submitted."""

    def __init__(self, kv_caches: CanonicalKVCaches, chunks: int) -> None:
        self._of_engine = [cache.tensor for cache in kv_caches.tensors]
        self._offloaded = [torch.zeros((chunks, cache.page_size_bytes), dtype=torch.int8) for cache in kv_caches.tensors]
        self._tensors_of_groups = [sorted({ref.tensor_idx for ref in refs}) for refs in kv_caches.group_data_refs]
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: Any) -> bool:
        """From the engine's cache."""
        return self._copy(job_id, src_spec, self._of_engine, src_spec, self._offloaded, dst_spec)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: GPULoadStoreSpec) -> bool:
        """Back into the engine's cache."""
        return self._copy(job_id, dst_spec, self._offloaded, src_spec, self._of_engine, dst_spec)

    def _copy(self, job_id: int, engine_spec: GPULoadStoreSpec, sources: list[Any], source: Any, targets: list[Any], target: Any) -> bool:
        end = copied = 0
        for tensors, size in zip(self._tensors_of_groups, engine_spec.group_sizes, strict=True):
            end += size
            blocks = slice(end - size, end)
            for tensor in tensors:
                pages = sources[tensor][torch.from_numpy(source.block_ids[blocks])]
                targets[tensor][torch.from_numpy(target.block_ids[blocks])] = pages
                copied += pages.numel()
        self._finished.append(TransferResult(job_id, success=True, transfer_size=copied, transfer_time=1e-6))
        return True

    def get_finished(self) -> list[TransferResult]:
        """Those since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """All transfers have ended."""


class CopyingSpec(CPUOffloadingSpec):
    """vLLM's, but for the worker. Chunks of one block."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        assert self.blocks_per_chunk == 1, "it copies block by block"
        return CopyingWorker(kv_caches, self.num_blocks)
