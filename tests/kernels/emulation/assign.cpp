// assign.cu on a CPU, as the operator detsearch_emulated::assign_topk of tensors on the CPU.

#include "torch_cuda.h"

#include "assign/assign.cu"

namespace detsearch::gpu {
thread_local uint64_t shared_memory[1 << 16];
}

STABLE_TORCH_LIBRARY_FRAGMENT(detsearch_emulated, m) {
  m.def(
      "assign_topk(Tensor[] logits, Tensor boxes, Tensor truth, Tensor labels, Tensor splits, Tensor sizes, Tensor cell, "
      "Tensor strides, Tensor ranges, Tensor counts, Tensor edges, int classes, float alpha, float min_iou) -> Tensor");
}
