// focal.cu on a CPU, as the operators detsearch_emulated::focal_sum and focal_gradient of tensors on the CPU.

#include "torch_cuda.h"

#include "focal/focal.cu"

STABLE_TORCH_LIBRARY_FRAGMENT(detsearch_emulated, m) {
  m.def("focal_sum(Tensor[] logits, Tensor matched, Tensor labels, float alpha, float gamma) -> Tensor");
  m.def(
      "focal_gradient(Tensor factor, Tensor[] logits, Tensor matched, Tensor labels, float alpha, float gamma) -> "
      "Tensor[]");
}
