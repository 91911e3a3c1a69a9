// Overlap of boxes on a GPU, with the arithmetic of boxes.h. Of all pairs: a thread keeps one prior and walks down
// ROWS ground truths, so that neighbouring threads write neighbouring numbers. Of given pairs: a thread a pair.

#include "boxes.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

namespace detsearch::boxes {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int THREADS = 256, ROWS = 16;
constexpr int64_t MOST_BLOCKS_Y = 65535;

// Boxes where they lie, in the type they have.
struct Boxes {
  void* data;
  ScalarType type;

  static Boxes of(const Tensor& boxes) { return {boxes.data_ptr(), boxes.scalar_type()}; }
};

template <typename T>
__device__ T load_number(const Boxes& boxes, int64_t i) {
  switch (boxes.type) {
    case ScalarType::Double: return static_cast<T>(static_cast<const double*>(boxes.data)[i]);
    case ScalarType::Half: return static_cast<T>(__half2float(static_cast<const __half*>(boxes.data)[i]));
    case ScalarType::BFloat16:
      return static_cast<T>(__bfloat162float(static_cast<const __nv_bfloat16*>(boxes.data)[i]));
    default: return static_cast<T>(static_cast<const float*>(boxes.data)[i]);
  }
}

template <typename T>
__device__ Box<T> load(const Boxes& boxes, int64_t i) {
  return {load_number<T>(boxes, 4 * i), load_number<T>(boxes, 4 * i + 1), load_number<T>(boxes, 4 * i + 2),
          load_number<T>(boxes, 4 * i + 3)};
}

template <typename T>
__device__ void store_number(const Boxes& boxes, int64_t i, T value) {
  switch (boxes.type) {
    case ScalarType::Double: static_cast<double*>(boxes.data)[i] = static_cast<double>(value); break;
    case ScalarType::Half: static_cast<__half*>(boxes.data)[i] = __float2half_rn(static_cast<float>(value)); break;
    case ScalarType::BFloat16:
      static_cast<__nv_bfloat16*>(boxes.data)[i] = __float2bfloat16_rn(static_cast<float>(value));
      break;
    default: static_cast<float*>(boxes.data)[i] = static_cast<float>(value);
  }
}

template <typename T>
__device__ void store(const Boxes& boxes, int64_t i, const Box<T>& box) {
  store_number(boxes, 4 * i, box.x1);
  store_number(boxes, 4 * i + 1, box.y1);
  store_number(boxes, 4 * i + 2, box.x2);
  store_number(boxes, 4 * i + 3, box.y2);
}

// The last three are null where only the value is wanted.
template <typename T>
struct Results {
  T *value, *shared, *covered, *hull;

  static Results of(const std::vector<Tensor>& tensors) {
    const bool areas = tensors.size() > 1;
    const auto data = [&](int i) { return areas || i == 0 ? static_cast<T*>(tensors[i].data_ptr()) : nullptr; };
    return {data(0), data(1), data(2), data(3)};
  }
  __device__ void store(int64_t i, const Overlap<T>& found) const {
    value[i] = found.value;
    if (shared == nullptr) return;
    shared[i] = found.shared;
    covered[i] = found.covered;
    hull[i] = found.hull;
  }
};

// The last image whose rows begin at or before this one.
__device__ int64_t image_of(const int64_t* splits, int64_t images, int64_t row) {
  int64_t low = 0, high = images;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (splits[middle] <= row ? low : high) = middle;
  }
  return low;
}

template <int measure, typename T>
__global__ void pairwise_kernel(Boxes gt, int64_t rows, Boxes priors, int64_t width, const int64_t* splits,
                                int64_t images, T eps, Results<T> to) {
  const int64_t column = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (column >= width) return;
  for (int64_t first = int64_t(blockIdx.y) * ROWS; first < rows; first += int64_t(gridDim.y) * ROWS) {
    int64_t loaded = -1;
    Box<T> b;
    T area_b, angle_b = 0;
    for (int64_t row = first; row < first + ROWS && row < rows; ++row) {
      const int64_t image = splits == nullptr ? 0 : image_of(splits, images, row);
      if (image != loaded) {
        b = load<T>(priors, image * width + column);
        area_b = area(b);
        if constexpr (measure == CIOU) angle_b = angle(b);
        loaded = image;
      }
      const Box<T> a = load<T>(gt, row);
      const T angle_a = measure == CIOU ? angle(a) : T(0);
      to.store(row * width + column, compare<measure>(a, area(a), angle_a, b, area_b, angle_b, eps));
    }
  }
}

template <int measure, typename T>
__global__ void aligned_kernel(Boxes boxes_a, Boxes boxes_b, int64_t count, T eps, Results<T> to) {
  const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= count) return;
  const Box<T> a = load<T>(boxes_a, i), b = load<T>(boxes_b, i);
  const T angle_a = measure == CIOU ? angle(a) : T(0), angle_b = measure == CIOU ? angle(b) : T(0);
  to.store(i, compare<measure>(a, area(a), angle_a, b, area(b), angle_b, eps));
}

// Gradients of the four results as they arrive: absent, or one number for all (stride 0), or one a box.
template <typename T>
struct Arriving {
  const T* data[4];
  int64_t stride[4];

  __device__ T get(int which, int64_t i) const { return data[which] == nullptr ? T(0) : data[which][i * stride[which]]; }
};

template <int measure, typename T>
__global__ void gradient_kernel(Boxes boxes_a, Boxes boxes_b, int64_t count, T eps, Arriving<T> arriving,
                                Boxes grad_a, Boxes grad_b) {
  const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= count) return;
  const Overlap<T> of{arriving.get(0, i), arriving.get(1, i), arriving.get(2, i), arriving.get(3, i)};
  Box<T> to_a, to_b;
  gradient<measure>(load<T>(boxes_a, i), load<T>(boxes_b, i), of, eps, to_a, to_b);
  if (grad_a.data != nullptr) store(grad_a, i, to_a);
  if (grad_b.data != nullptr) store(grad_b, i, to_b);
}

// Calls f with the measure and a number of the type to compute in.
template <typename F>
void choose(int64_t measure, const Tensor& boxes, F f) {
  const auto typed = [&](auto m) { boxes.scalar_type() == ScalarType::Double ? f(m, double{}) : f(m, float{}); };
  switch (measure) {
    case IOU: return typed(std::integral_constant<int, IOU>{});
    case GIOU: return typed(std::integral_constant<int, GIOU>{});
    case DIOU: return typed(std::integral_constant<int, DIOU>{});
    case CIOU: return typed(std::integral_constant<int, CIOU>{});
    default: STD_TORCH_CHECK(false, "measure is 0 (IoU) to 3 (CIoU), got ", measure);
  }
}

cudaStream_t stream_of(const Tensor& tensor) {
  void* stream = nullptr;
  aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream);
  return static_cast<cudaStream_t>(stream);
}

void launched() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "box kernel: ", cudaGetErrorString(error));
}

unsigned blocks_of(int64_t count) { return static_cast<unsigned>((count + THREADS - 1) / THREADS); }

ScalarType computed(const Tensor& boxes) {
  return boxes.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void check(const Tensor& a, const Tensor& b) {
  const ScalarType type = a.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
                      type == ScalarType::BFloat16,
                  "boxes must be float32, float64, float16 or bfloat16");
  STD_TORCH_CHECK(type == b.scalar_type(), "both box tensors must have the same dtype");
  STD_TORCH_CHECK(a.dim() > 0 && b.dim() > 0 && a.size(a.dim() - 1) == 4 && b.size(b.dim() - 1) == 4,
                  "boxes must have 4 columns");
}

void pairwise_into(const Tensor& gt, const Tensor& priors, const std::optional<Tensor>& splits, int64_t measure,
                   double eps, const std::vector<Tensor>& results) {
  check(gt, priors);
  STD_TORCH_CHECK(gt.dim() == 2 && priors.dim() == (splits ? 3 : 2),
                  "ground truths must be (G, 4) and priors (A, 4), or (B, A, 4) with splits");
  STD_TORCH_CHECK(!splits || (splits->scalar_type() == ScalarType::Long && splits->dim() == 1 &&
                              splits->size(0) == priors.size(0) + 1),
                  "splits must be int64 with one number more than there are images");
  const int64_t rows = gt.size(0), width = priors.size(priors.dim() - 2);
  if (rows == 0 || width == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(gt.get_device_index());
  const Tensor from = torch::stable::contiguous(gt), columns = torch::stable::contiguous(priors);
  std::optional<Tensor> ends;
  if (splits) ends = torch::stable::contiguous(*splits);
  const int64_t* row_of = ends ? static_cast<const int64_t*>(ends->data_ptr()) : nullptr;
  const dim3 grid(blocks_of(width), static_cast<unsigned>(std::min((rows + ROWS - 1) / ROWS, MOST_BLOCKS_Y)));
  choose(measure, gt, [&](auto m, auto zero) {
    using T = decltype(zero);
    pairwise_kernel<decltype(m)::value, T><<<grid, THREADS, 0, stream_of(gt)>>>(
        Boxes::of(from), rows, Boxes::of(columns), width, row_of, ends ? priors.size(0) : 1, T(eps),
        Results<T>::of(results));
  });
  launched();
}

Tensor pairwise_empty(const Tensor& gt, const Tensor& priors) {
  return torch::stable::new_empty(gt, {gt.size(0), priors.size(priors.dim() - 2)}, computed(gt));
}

Tensor pairwise(const Tensor& gt, const Tensor& priors, const std::optional<Tensor>& splits, int64_t measure,
                double eps) {
  Tensor value = pairwise_empty(gt, priors);
  pairwise_into(gt, priors, splits, measure, eps, {value});
  return value;
}

void pairwise_out(const Tensor& gt, const Tensor& priors, const std::optional<Tensor>& splits, int64_t measure,
                  double eps, Tensor out) {
  STD_TORCH_CHECK(out.dim() == 2 && out.size(0) == gt.size(0) && out.size(1) == priors.size(priors.dim() - 2) &&
                      out.is_contiguous() && out.scalar_type() == computed(gt),
                  "out must be contiguous, (ground truths, priors), and float32 or, for float64 boxes, float64");
  pairwise_into(gt, priors, splits, measure, eps, {out});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pairwise_areas(const Tensor& gt, const Tensor& priors,
                                                          const std::optional<Tensor>& splits, int64_t measure,
                                                          double eps) {
  std::vector<Tensor> to;
  for (int i = 0; i < 4; ++i) to.push_back(pairwise_empty(gt, priors));
  pairwise_into(gt, priors, splits, measure, eps, to);
  return {to[0], to[1], to[2], to[3]};
}

void same_shape(const Tensor& a, const Tensor& b) {
  check(a, b);
  bool same = a.dim() == b.dim();
  for (int64_t i = 0; same && i < a.dim(); ++i) same = a.size(i) == b.size(i);
  STD_TORCH_CHECK(same, "aligned boxes must have the same shape");
}

void aligned_into(const Tensor& boxes_a, const Tensor& boxes_b, int64_t measure, double eps,
                  const std::vector<Tensor>& results) {
  same_shape(boxes_a, boxes_b);
  const int64_t count = boxes_a.numel() / 4;
  if (count == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(boxes_a.get_device_index());
  const Tensor a = torch::stable::contiguous(boxes_a), b = torch::stable::contiguous(boxes_b);
  choose(measure, a, [&](auto m, auto zero) {
    using T = decltype(zero);
    aligned_kernel<decltype(m)::value, T><<<blocks_of(count), THREADS, 0, stream_of(a)>>>(
        Boxes::of(a), Boxes::of(b), count, T(eps), Results<T>::of(results));
  });
  launched();
}

Tensor aligned_empty(const Tensor& boxes) {
  const auto sizes = boxes.sizes();
  return torch::stable::new_empty(boxes, {sizes.data(), sizes.size() - 1}, computed(boxes));
}

Tensor aligned(const Tensor& a, const Tensor& b, int64_t measure, double eps) {
  Tensor value = aligned_empty(a);
  aligned_into(a, b, measure, eps, {value});
  return value;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> aligned_areas(const Tensor& a, const Tensor& b, int64_t measure,
                                                         double eps) {
  std::vector<Tensor> to;
  for (int i = 0; i < 4; ++i) to.push_back(aligned_empty(a));
  aligned_into(a, b, measure, eps, to);
  return {to[0], to[1], to[2], to[3]};
}

std::tuple<Tensor, Tensor> aligned_backward(const Tensor& boxes_a, const Tensor& boxes_b,
                                            const std::optional<Tensor>& value,
                                            const std::optional<Tensor>& shared,
                                            const std::optional<Tensor>& covered,
                                            const std::optional<Tensor>& hull, int64_t measure, double eps,
                                            bool need_a, bool need_b) {
  same_shape(boxes_a, boxes_b);
  const int64_t count = boxes_a.numel() / 4;
  const torch::stable::accelerator::DeviceGuard guard(boxes_a.get_device_index());
  const Tensor a = torch::stable::contiguous(boxes_a), b = torch::stable::contiguous(boxes_b);
  Tensor grad_a = torch::stable::new_empty(a, need_a ? a.sizes() : decltype(a.sizes())({0}));
  Tensor grad_b = torch::stable::new_empty(b, need_b ? b.sizes() : decltype(b.sizes())({0}));
  if (count == 0) return {grad_a, grad_b};
  std::vector<Tensor> flat;  // keeps them alive until the launch
  const std::optional<Tensor>* given[4] = {&value, &shared, &covered, &hull};
  choose(measure, a, [&](auto m, auto zero) {
    using T = decltype(zero);
    Arriving<T> arriving{};
    for (int i = 0; i < 4; ++i) {
      if (!*given[i]) continue;
      STD_TORCH_CHECK((*given[i])->numel() == count && (*given[i])->scalar_type() == computed(a),
                      "a gradient must have a number a box, in the dtype of the result");
      flat.push_back(torch::stable::reshape(**given[i], {-1}));
      arriving.data[i] = static_cast<const T*>(flat.back().data_ptr());
      arriving.stride[i] = flat.back().stride(0);
    }
    gradient_kernel<decltype(m)::value, T><<<blocks_of(count), THREADS, 0, stream_of(a)>>>(
        Boxes::of(a), Boxes::of(b), count, T(eps), arriving, need_a ? Boxes::of(grad_a) : Boxes{nullptr},
        need_b ? Boxes::of(grad_b) : Boxes{nullptr});
  });
  launched();
  return {grad_a, grad_b};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(detsearch, CUDA, m) {
  m.impl("box_pairwise", TORCH_BOX(&pairwise));
  m.impl("box_pairwise_out", TORCH_BOX(&pairwise_out));
  m.impl("box_pairwise_areas", TORCH_BOX(&pairwise_areas));
  m.impl("box_aligned", TORCH_BOX(&aligned));
  m.impl("box_aligned_areas", TORCH_BOX(&aligned_areas));
  m.impl("box_aligned_backward", TORCH_BOX(&aligned_backward));
}

}  // namespace detsearch::boxes
