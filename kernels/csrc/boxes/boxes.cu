// Overlap of boxes on a GPU, with the arithmetic of boxes.h. Of all pairs: a thread keeps one prior and walks down
// ROWS ground truths, so that neighbouring threads write neighbouring numbers. Of given pairs: a thread a pair.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "boxes/boxes_operators.h"
#include "common/gpu.h"

namespace detsearch::boxes {
namespace {

constexpr int THREADS = 256, ROWS = 16;
constexpr int64_t MAX_BLOCKS_Y = 65535;

// Boxes in memory, in the type they have. The kernel tests the type: a kernel for each would make the library twice as
// large, and the time goes into memory.
struct Boxes {
  void* data;
  ScalarType type;

  static Boxes of(const Tensor& boxes) { return {boxes.data_ptr(), boxes.scalar_type()}; }
  static Boxes of(const Gradient& boxes) { return boxes ? of(*boxes) : Boxes{nullptr, ScalarType::Float}; }
};

template <typename T>
__device__ T load_number(const Boxes& boxes, int64_t i) {
  switch (boxes.type) {
    case ScalarType::Double:
      return static_cast<T>(static_cast<const double*>(boxes.data)[i]);
    case ScalarType::Half:
      return static_cast<T>(__half2float(static_cast<const __half*>(boxes.data)[i]));
    case ScalarType::BFloat16:
      return static_cast<T>(__bfloat162float(static_cast<const __nv_bfloat16*>(boxes.data)[i]));
    default:
      return static_cast<T>(static_cast<const float*>(boxes.data)[i]);
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
    case ScalarType::Double:
      static_cast<double*>(boxes.data)[i] = static_cast<double>(value);
      break;
    case ScalarType::Half:
      static_cast<__half*>(boxes.data)[i] = __float2half_rn(static_cast<float>(value));
      break;
    case ScalarType::BFloat16:
      static_cast<__nv_bfloat16*>(boxes.data)[i] = __float2bfloat16_rn(static_cast<float>(value));
      break;
    default:
      static_cast<float*>(boxes.data)[i] = static_cast<float>(value);
  }
}

template <typename T>
__device__ void store(const Boxes& boxes, int64_t i, const Box<T>& box) {
  store_number(boxes, 4 * i, box.x1);
  store_number(boxes, 4 * i + 1, box.y1);
  store_number(boxes, 4 * i + 2, box.x2);
  store_number(boxes, 4 * i + 3, box.y2);
}

template <typename T>
__device__ void store_overlap(const Results<T>& to, int64_t i, const Overlap<T>& overlap) {
  to.value[i] = overlap.value;
  if (to.shared == nullptr) return;
  to.shared[i] = overlap.shared;
  to.covered[i] = overlap.covered;
  to.hull[i] = overlap.hull;
}

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
  // CUDA allows 65535 blocks along y, so a block may have to take several groups of rows
  for (int64_t first = int64_t(blockIdx.y) * ROWS; first < rows; first += int64_t(gridDim.y) * ROWS) {
    int64_t loaded = -1;  // the image whose prior is loaded; it changes seldom down the rows
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
      store_overlap(to, row * width + column, compare<measure>(a, area(a), angle_a, b, area_b, angle_b, eps));
    }
  }
}

template <int measure, typename T>
__global__ void aligned_kernel(Boxes boxes_a, Boxes boxes_b, int64_t count, T eps, Results<T> to) {
  const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= count) return;
  const Box<T> a = load<T>(boxes_a, i), b = load<T>(boxes_b, i);
  const T angle_a = measure == CIOU ? angle(a) : T(0), angle_b = measure == CIOU ? angle(b) : T(0);
  store_overlap(to, i, compare<measure>(a, area(a), angle_a, b, area(b), angle_b, eps));
}

template <typename T>
struct IncomingGradients {
  IncomingGradient<T> value, shared, covered, hull;
};

template <int measure, typename T>
__global__ void gradient_kernel(Boxes boxes_a, Boxes boxes_b, int64_t count, T eps, IncomingGradients<T> from,
                                Boxes grad_a, Boxes grad_b) {
  const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= count) return;
  const Overlap<T> grad{from.value.get(i), from.shared.get(i), from.covered.get(i), from.hull.get(i)};
  Box<T> to_a, to_b;
  gradient<measure>(load<T>(boxes_a, i), load<T>(boxes_b, i), grad, eps, to_a, to_b);
  if (grad_a.data != nullptr) store(grad_a, i, to_a);
  if (grad_b.data != nullptr) store(grad_b, i, to_b);
}

void check_launch() {
  // a launch by <<<>>> returns nothing; an error would otherwise appear in whatever call of CUDA comes next
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "box kernel: ", cudaGetErrorString(error));
}

unsigned blocks_of(int64_t count) { return static_cast<unsigned>((count + THREADS - 1) / THREADS); }

struct Cuda {
  static void pairwise(const Tensor& gt, const Tensor& priors, const Splits& splits, int64_t measure, double eps,
                       const std::vector<Tensor>& results) {
    const int64_t rows = gt.size(0), width = priors.size(priors.dim() - 2), images = splits ? priors.size(0) : 1;
    const int64_t* row_of = splits ? static_cast<const int64_t*>(splits->data_ptr()) : nullptr;
    const gpu::Stream stream(gt);
    const dim3 grid(blocks_of(width), static_cast<unsigned>(std::min((rows + ROWS - 1) / ROWS, MAX_BLOCKS_Y)));
    dispatch(measure, gt, [&](auto m, auto zero) {
      using T = decltype(zero);
      pairwise_kernel<decltype(m)::value, T><<<grid, THREADS, 0, stream.get()>>>(
          Boxes::of(gt), rows, Boxes::of(priors), width, row_of, images, T(eps), Results<T>::of(results));
    });
    check_launch();
  }

  static void aligned(const Tensor& a, const Tensor& b, int64_t measure, double eps,
                      const std::vector<Tensor>& results) {
    const int64_t count = a.numel() / 4;
    const gpu::Stream stream(a);
    dispatch(measure, a, [&](auto m, auto zero) {
      using T = decltype(zero);
      aligned_kernel<decltype(m)::value, T><<<blocks_of(count), THREADS, 0, stream.get()>>>(
          Boxes::of(a), Boxes::of(b), count, T(eps), Results<T>::of(results));
    });
    check_launch();
  }

  static void gradient(const Tensor& a, const Tensor& b, const std::array<Gradient, 4>& incoming, int64_t measure,
                       double eps, const Gradient& grad_a, const Gradient& grad_b) {
    const int64_t count = a.numel() / 4;
    const gpu::Stream stream(a);
    dispatch(measure, a, [&](auto m, auto zero) {
      using T = decltype(zero);
      const IncomingGradients<T> from{IncomingGradient<T>::of(incoming[0]), IncomingGradient<T>::of(incoming[1]),
                                      IncomingGradient<T>::of(incoming[2]), IncomingGradient<T>::of(incoming[3])};
      gradient_kernel<decltype(m)::value, T><<<blocks_of(count), THREADS, 0, stream.get()>>>(
          Boxes::of(a), Boxes::of(b), count, T(eps), from, Boxes::of(grad_a), Boxes::of(grad_b));
    });
    check_launch();
  }

  static void use_large_pages(const Tensor&) {}
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(detsearch, CUDA, m) { implement<Cuda>(m); }

}  // namespace detsearch::boxes
