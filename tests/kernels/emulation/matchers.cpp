// matchers.cu and simota.cu on a CPU, as the operators detsearch_emulated::max_iou, fcos_targets, atss and simota of
// tensors on the CPU.

#include "torch_cuda.h"

#include "matchers/matchers.cu"
#include "simota/simota.cu"

STABLE_TORCH_LIBRARY_FRAGMENT(detsearch_emulated, m) {
  m.def(
      "max_iou(Tensor truth, Tensor splits, Tensor sizes, Tensor cell, Tensor strides, Tensor ranges, int priors, "
      "float positive_iou, float negative_iou, bool low_quality) -> Tensor");
  m.def(
      "fcos_targets(Tensor truth, Tensor splits, Tensor sizes, Tensor cell, Tensor strides, Tensor ranges, "
      "int priors, float radius) -> Tensor");
  m.def(
      "atss(Tensor truth, Tensor splits, Tensor sizes, Tensor cell, Tensor strides, Tensor ranges, int priors, "
      "int top_k) -> Tensor");
  m.def(
      "simota(Tensor[] logits, Tensor boxes, Tensor truth, Tensor labels, Tensor splits, Tensor sizes, Tensor cell, "
      "Tensor strides, Tensor ranges, int classes, int top_k, float radius) -> Tensor");
}
