// The box operators as PyTorch calls them: they check operands, make results and pass on gradients that may be absent.
// `Device` does the work:
//   pairwise(gt (G, 4), priors (A, 4) or (B, A, 4), splits (B + 1) or none, measure, eps, results)
//   aligned(a (N, 4), b (N, 4), measure, eps, results)
//   gradient(a, b, incoming, measure, eps, grad_a or none, grad_b or none)
//   use_large_pages(matrix), called on a new, still untouched result of a pairwise comparison
// All tensors it is given are contiguous. `results` are the value alone, or value, intersection, union and hull.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "boxes/boxes.h"

namespace detsearch::boxes {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Splits = std::optional<Tensor>;
using Gradient = std::optional<Tensor>;
using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

inline ScalarType compute_type(const Tensor& boxes) {
  return boxes.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_boxes(const Tensor& a, const Tensor& b) {
  const ScalarType type = a.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
                      type == ScalarType::BFloat16,
                  "boxes must be float32, float64, float16 or bfloat16");
  STD_TORCH_CHECK(type == b.scalar_type(), "both box tensors must have the same dtype");
  STD_TORCH_CHECK(a.dim() > 0 && b.dim() > 0 && a.size(a.dim() - 1) == 4 && b.size(b.dim() - 1) == 4,
                  "boxes must have 4 columns");
}

inline void check_pairwise(const Tensor& gt, const Tensor& priors, const Splits& splits) {
  check_boxes(gt, priors);
  STD_TORCH_CHECK(gt.dim() == 2 && priors.dim() == (splits ? 3 : 2),
                  "ground truths must be (G, 4) and priors (A, 4), or (B, A, 4) with splits");
  STD_TORCH_CHECK(!splits || (splits->scalar_type() == ScalarType::Long && splits->dim() == 1 &&
                              splits->size(0) == priors.size(0) + 1),
                  "splits must be int64 with one number more than there are images");
  STD_TORCH_CHECK(gt.size(0) == 0 || priors.dim() == 2 || priors.size(0) > 0, "ground truths without an image");
}

inline void check_aligned(const Tensor& a, const Tensor& b) {
  check_boxes(a, b);
  bool same = a.dim() == b.dim();
  for (int64_t i = 0; same && i < a.dim(); ++i) same = a.size(i) == b.size(i);
  STD_TORCH_CHECK(same, "aligned boxes must have the same shape");
}

// Calls f with the measure, a constant, and a zero of the type to compute in.
template <typename F>
void dispatch(int64_t measure, const Tensor& boxes, F f) {
  const auto with_type = [&](auto m) { boxes.scalar_type() == ScalarType::Double ? f(m, double{}) : f(m, float{}); };
  switch (measure) {
    case IOU:
      return with_type(std::integral_constant<int, IOU>{});
    case GIOU:
      return with_type(std::integral_constant<int, GIOU>{});
    case DIOU:
      return with_type(std::integral_constant<int, DIOU>{});
    case CIOU:
      return with_type(std::integral_constant<int, CIOU>{});
    default:
      STD_TORCH_CHECK(false, "measure is 0 (IoU) to 3 (CIoU), got ", measure);
  }
}

// Where results go; the last three are null where only the value is wanted.
template <typename T>
struct Results {
  T *value, *shared, *covered, *hull;

  static Results of(const std::vector<Tensor>& tensors) {
    Results to{};
    T** part[4] = {&to.value, &to.shared, &to.covered, &to.hull};
    for (size_t i = 0; i < tensors.size(); ++i) *part[i] = static_cast<T*>(tensors[i].data_ptr());
    return to;
  }
};

// A flat gradient as it arrives: absent, or one number for all boxes (stride 0), or one for each.
template <typename T>
struct IncomingGradient {
  const T* data;
  int64_t stride;

  static IncomingGradient of(const Gradient& flat) {
    if (!flat) return {nullptr, 0};
    return {static_cast<const T*>(flat->data_ptr()), flat->stride(0)};
  }
  DETSEARCH_INLINE T get(int64_t i) const { return data == nullptr ? T(0) : data[i * stride]; }
};

template <typename Device>
Tensor pairwise_result(const Tensor& gt, const Tensor& priors) {
  Tensor matrix = torch::stable::new_empty(gt, {gt.size(0), priors.size(priors.dim() - 2)}, compute_type(gt));
  Device::use_large_pages(matrix);
  return matrix;
}

template <typename Device>
void pairwise_into(const Tensor& gt, const Tensor& priors, const Splits& splits, int64_t measure, double eps,
                   const std::vector<Tensor>& results) {
  Splits rows;
  if (splits) rows = torch::stable::contiguous(*splits);
  if (results[0].numel() > 0)
    Device::pairwise(torch::stable::contiguous(gt), torch::stable::contiguous(priors), rows, measure, eps, results);
}

template <typename Device>
Tensor pairwise(const Tensor& gt, const Tensor& priors, const Splits& splits, int64_t measure, double eps) {
  check_pairwise(gt, priors, splits);
  Tensor value = pairwise_result<Device>(gt, priors);
  pairwise_into<Device>(gt, priors, splits, measure, eps, {value});
  return value;
}

template <typename Device>
void pairwise_out(const Tensor& gt, const Tensor& priors, const Splits& splits, int64_t measure, double eps,
                  Tensor out) {
  check_pairwise(gt, priors, splits);
  STD_TORCH_CHECK(out.dim() == 2 && out.size(0) == gt.size(0) && out.size(1) == priors.size(priors.dim() - 2) &&
                      out.is_contiguous() && out.scalar_type() == compute_type(gt),
                  "out must be contiguous, (ground truths, priors), and float32 or, for float64 boxes, float64");
  pairwise_into<Device>(gt, priors, splits, measure, eps, {out});
}

template <typename Device>
FourTensors pairwise_areas(const Tensor& gt, const Tensor& priors, const Splits& splits, int64_t measure, double eps) {
  check_pairwise(gt, priors, splits);
  std::vector<Tensor> to;
  for (int i = 0; i < 4; ++i) to.push_back(pairwise_result<Device>(gt, priors));
  pairwise_into<Device>(gt, priors, splits, measure, eps, to);
  return {to[0], to[1], to[2], to[3]};
}

template <typename Device>
std::vector<Tensor> aligned_results(const Tensor& a, const Tensor& b, int64_t measure, double eps, int count) {
  check_aligned(a, b);
  const auto sizes = a.sizes();
  std::vector<Tensor> to;
  for (int i = 0; i < count; ++i)
    to.push_back(torch::stable::new_empty(a, {sizes.data(), sizes.size() - 1}, compute_type(a)));
  if (a.numel() > 0) Device::aligned(torch::stable::contiguous(a), torch::stable::contiguous(b), measure, eps, to);
  return to;
}

template <typename Device>
Tensor aligned(const Tensor& a, const Tensor& b, int64_t measure, double eps) {
  return aligned_results<Device>(a, b, measure, eps, 1)[0];
}

template <typename Device>
FourTensors aligned_areas(const Tensor& a, const Tensor& b, int64_t measure, double eps) {
  const auto to = aligned_results<Device>(a, b, measure, eps, 4);
  return {to[0], to[1], to[2], to[3]};
}

// What is not needed comes back with no elements.
template <typename Device>
std::tuple<Tensor, Tensor> aligned_backward(const Tensor& a, const Tensor& b, const Gradient& value,
                                            const Gradient& shared, const Gradient& covered, const Gradient& hull,
                                            int64_t measure, double eps, bool need_a, bool need_b) {
  check_aligned(a, b);
  std::array<Gradient, 4> incoming{value, shared, covered, hull};
  for (Gradient& one : incoming) {
    if (!one) continue;
    STD_TORCH_CHECK(one->numel() == a.numel() / 4 && one->scalar_type() == compute_type(a),
                    "a gradient must have a number a box, in the dtype of the result");
    one = torch::stable::reshape(*one, {-1});  // an expanded number stays one number, with stride 0
  }
  const auto like = [](const Tensor& boxes, bool needed) {
    return needed ? torch::stable::new_empty(boxes, boxes.sizes()) : torch::stable::new_empty(boxes, {0});
  };
  Tensor grad_a = like(a, need_a), grad_b = like(b, need_b);
  if (a.numel() > 0)
    Device::gradient(torch::stable::contiguous(a), torch::stable::contiguous(b), incoming, measure, eps,
                     need_a ? Gradient(grad_a) : std::nullopt, need_b ? Gradient(grad_b) : std::nullopt);
  return {grad_a, grad_b};
}

template <typename Device>
void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("box_pairwise", TORCH_BOX(&pairwise<Device>));
  m.impl("box_pairwise_out", TORCH_BOX(&pairwise_out<Device>));
  m.impl("box_pairwise_areas", TORCH_BOX(&pairwise_areas<Device>));
  m.impl("box_aligned", TORCH_BOX(&aligned<Device>));
  m.impl("box_aligned_areas", TORCH_BOX(&aligned_areas<Device>));
  m.impl("box_aligned_backward", TORCH_BOX(&aligned_backward<Device>));
}

}  // namespace detsearch::boxes
