// ap_loss.cu on a CPU, as operators of detsearch_emulated for tensors on the CPU.

#include "torch_cuda.h"

#include "ap_loss/ap_loss.cu"

// what a launch gives to the blocks, here once for all of them: they run one after the other
namespace detsearch::ap {
thread_local double shared_bins[1 << 13];
}

STABLE_TORCH_LIBRARY_FRAGMENT(detsearch_emulated, m) {
  m.def("ap_loss_own(Tensor[] levels, Tensor positives) -> (Tensor own, Tensor place)");
  m.def(
      "ap_loss_bins(Tensor[] levels, Tensor own, Tensor ignored, Tensor knots, int steps) -> "
      "(Tensor[] bins, Tensor at, Tensor owner, Tensor totals)");
  m.def(
      "ap_loss_answer(Tensor totals, Tensor at, Tensor owner, Tensor own, Tensor quality, Tensor knots, int steps, "
      "bool through_denominator) -> (Tensor loss, Tensor slopes, Tensor by_score, Tensor by_quality)");
  m.def("ap_loss_gradient(Tensor[] bins, Tensor slopes, Tensor place, Tensor by_score) -> Tensor[]");
}
