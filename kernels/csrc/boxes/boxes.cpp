// Overlap of boxes on the CPU: of all pairs, of given pairs, and the gradient of the latter.
//
// Boxes are read a block at a time into one array per coordinate, so that loops over them become vectors. Reading
// converts half precision, so the arithmetic exists in float32 and float64 only. A block of priors is compared with
// every ground truth while it lies in the first-level cache.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

#include "boxes/boxes_operators.h"
#include "common/large_pages.h"

namespace detsearch::boxes {
namespace {

constexpr int64_t BLOCK = 512, PAIRS_A_TASK = 32768, BLOCKS_A_TASK = 16;

template <typename T>
struct Block {
  T x1[BLOCK], y1[BLOCK], x2[BLOCK], y2[BLOCK], area[BLOCK], angle[BLOCK];

  Box<T> box(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i]}; }
};

// Calls f(pointer) with the pointer in the tensor's own type.
template <typename T, typename F>
void with_type(const Tensor& tensor, F f) {
  void* data = tensor.data_ptr();
  if constexpr (std::is_same_v<T, double>) return f(static_cast<double*>(data));
  switch (tensor.scalar_type()) {
    case ScalarType::BFloat16:
      return f(static_cast<torch::headeronly::BFloat16*>(data));
    case ScalarType::Half:
      return f(static_cast<torch::headeronly::Half*>(data));
    default:
      return f(static_cast<float*>(data));
  }
}

template <typename T>
void read(const Tensor& boxes, int64_t start, int64_t count, Block<T>& to) {
  with_type<T>(boxes, [&](const auto* from) {
    from += 4 * start;
    for (int64_t i = 0; i < count; ++i) {
      to.x1[i] = static_cast<T>(from[4 * i]);
      to.y1[i] = static_cast<T>(from[4 * i + 1]);
      to.x2[i] = static_cast<T>(from[4 * i + 2]);
      to.y2[i] = static_cast<T>(from[4 * i + 3]);
    }
  });
}

template <typename T>
void measure_block(Block<T>& block, int64_t count, bool with_angle) {
  for (int64_t i = 0; i < count; ++i) block.area[i] = area(block.box(i));
  if (with_angle)
    for (int64_t i = 0; i < count; ++i) block.angle[i] = angle(block.box(i));
}

template <typename T>
void write(const Block<T>& from, int64_t start, int64_t count, const Tensor& boxes) {
  with_type<T>(boxes, [&](auto* to) {
    using S = std::remove_pointer_t<decltype(to)>;
    to += 4 * start;
    for (int64_t i = 0; i < count; ++i) {
      to[4 * i] = static_cast<S>(from.x1[i]);
      to[4 * i + 1] = static_cast<S>(from.y1[i]);
      to[4 * i + 2] = static_cast<S>(from.x2[i]);
      to[4 * i + 3] = static_cast<S>(from.y2[i]);
    }
  });
}

// Overlap of a(i) and b(i), each a box with its area and angle, for i below `count`.
template <int measure, typename T, typename A, typename B>
void compare_all(A a, B b, int64_t count, T eps, Results<T> to) {
  const auto one = [&](int64_t i) {
    const auto [box_a, area_a, angle_a] = a(i);
    const auto [box_b, area_b, angle_b] = b(i);
    return compare<measure>(box_a, area_a, angle_a, box_b, area_b, angle_b, eps);
  };
  T* __restrict value = to.value, * __restrict shared = to.shared, * __restrict covered = to.covered, * __restrict hull = to.hull;
  if (shared == nullptr) {  // a loop of its own: a branch inside would keep it from becoming vectors
    for (int64_t i = 0; i < count; ++i) value[i] = one(i).value;
    return;
  }
#pragma GCC ivdep  // too many arrays for the compiler's own check that none overlaps
  for (int64_t i = 0; i < count; ++i) {
    const Overlap<T> overlap = one(i);
    value[i] = overlap.value;
    shared[i] = overlap.shared;
    covered[i] = overlap.covered;
    hull[i] = overlap.hull;
  }
}

template <typename T>
struct Measured {
  Box<T> box;
  T area, angle;
};

template <int measure, typename T>
auto measured(const Block<T>& block) {
  return
      [&block](int64_t i) { return Measured<T>{block.box(i), block.area[i], measure == CIOU ? block.angle[i] : T(0)}; };
}

template <typename T>
Results<T> shifted(const Results<T>& to, int64_t by) {
  if (to.shared == nullptr) return {to.value + by, nullptr, nullptr, nullptr};
  return {to.value + by, to.shared + by, to.covered + by, to.hull + by};
}

template <int measure, typename T>
void compare_pairwise(const Tensor& gt, const Tensor& priors, const int64_t* row_of, int64_t images, T eps,
                      Results<T> to) {
  const int64_t rows = gt.size(0), width = priors.size(priors.dim() - 2);
  std::vector<Block<T>> truth((rows + BLOCK - 1) / BLOCK);
  for (size_t i = 0; i < truth.size(); ++i) {
    const int64_t start = int64_t(i) * BLOCK, count = std::min(BLOCK, rows - start);
    read(gt, start, count, truth[i]);
    measure_block(truth[i], count, measure == CIOU);
  }
  const int64_t blocks = (width + BLOCK - 1) / BLOCK, pairs_a_block = BLOCK * std::max<int64_t>(1, rows / images);
  const auto work = [&](int64_t begin, int64_t end) {
    Block<T> block;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / blocks, start = (task % blocks) * BLOCK, count = std::min(BLOCK, width - start);
      if (row_of[image] == row_of[image + 1]) continue;
      read(priors, image * width + start, count, block);
      measure_block(block, count, measure == CIOU);
      for (int64_t g = row_of[image]; g < row_of[image + 1]; ++g) {
        const Measured<T> a = measured<measure>(truth[g / BLOCK])(g % BLOCK);
        compare_all<measure>([a](int64_t) { return a; }, measured<measure>(block), count, eps,
                             shifted(to, g * width + start));
      }
    }
  };
  // with few ground truths a block is little work, so a task takes several blocks
  torch::stable::parallel_for(0, images * blocks, PAIRS_A_TASK / pairs_a_block + 1, work);
}

// Calls f(start, count) for blocks of the boxes, on all threads.
template <typename F>
void for_blocks(int64_t boxes, F f) {
  const auto work = [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) f(block * BLOCK, std::min(BLOCK, boxes - block * BLOCK));
  };
  torch::stable::parallel_for(0, (boxes + BLOCK - 1) / BLOCK, BLOCKS_A_TASK, work);
}

// Gradients of a block. One side may be left out: most often it is the ground truth. Which one is a constant of the
// loop, so that what is not needed is not computed.
template <int measure, typename T>
void gradients(const Block<T>& a, const Block<T>& b, const Block<T>& grad, int64_t count, T eps, Block<T>* to_a,
               Block<T>* to_b) {
  const auto store = [](const Box<T>& box, int64_t i, Block<T>* to) {
    to->x1[i] = box.x1, to->y1[i] = box.y1, to->x2[i] = box.x2, to->y2[i] = box.y2;
  };
  const auto all = [&](auto with_a, auto with_b) {
    for (int64_t i = 0; i < count; ++i) {
      const Overlap<T> of{grad.x1[i], grad.y1[i], grad.x2[i], grad.y2[i]};
      Box<T> grad_a, grad_b;
      gradient<measure>(a.box(i), b.box(i), of, eps, grad_a, grad_b);
      if constexpr (with_a) store(grad_a, i, to_a);
      if constexpr (with_b) store(grad_b, i, to_b);
    }
  };
  if (to_a != nullptr && to_b != nullptr) return all(std::true_type{}, std::true_type{});
  to_a != nullptr ? all(std::true_type{}, std::false_type{}) : all(std::false_type{}, std::true_type{});
}

struct Cpu {
  static void pairwise(const Tensor& gt, const Tensor& priors, const Splits& splits, int64_t measure, double eps,
                       const std::vector<Tensor>& results) {
    const int64_t images = splits ? priors.size(0) : 1, all[2] = {0, gt.size(0)};
    const int64_t* row_of = splits ? static_cast<const int64_t*>(splits->data_ptr()) : all;
    STD_TORCH_CHECK(row_of[0] == 0 && row_of[images] == gt.size(0) && std::is_sorted(row_of, row_of + images + 1),
                    "splits must rise from 0 to the number of ground truths");
    dispatch(measure, gt, [&](auto m, auto zero) {
      using T = decltype(zero);
      constexpr int M = decltype(m)::value;
      compare_pairwise<M>(gt, priors, row_of, images, T(eps), Results<T>::of(results));
    });
  }

  static void aligned(const Tensor& boxes_a, const Tensor& boxes_b, int64_t measure, double eps,
                      const std::vector<Tensor>& results) {
    dispatch(measure, boxes_a, [&](auto m, auto zero) {
      using T = decltype(zero);
      constexpr int M = decltype(m)::value;
      const auto to = Results<T>::of(results);
      for_blocks(boxes_a.numel() / 4, [&](int64_t start, int64_t count) {
        Block<T> a, b;
        read(boxes_a, start, count, a);
        read(boxes_b, start, count, b);
        measure_block(a, count, M == CIOU);
        measure_block(b, count, M == CIOU);
        compare_all<M>(measured<M>(a), measured<M>(b), count, T(eps), shifted(to, start));
      });
    });
  }

  static void gradient(const Tensor& boxes_a, const Tensor& boxes_b, const std::array<Gradient, 4>& incoming,
                       int64_t measure, double eps, const Gradient& grad_a, const Gradient& grad_b) {
    if (!grad_a && !grad_b) return;
    dispatch(measure, boxes_a, [&](auto m, auto zero) {
      using T = decltype(zero);
      constexpr int M = decltype(m)::value;
      IncomingGradient<T> from[4];
      for (int k = 0; k < 4; ++k) from[k] = IncomingGradient<T>::of(incoming[k]);
      for_blocks(boxes_a.numel() / 4, [&](int64_t start, int64_t count) {
        Block<T> a, b, grad, to_a, to_b;
        read(boxes_a, start, count, a);
        read(boxes_b, start, count, b);
        T* part[4] = {grad.x1, grad.y1, grad.x2, grad.y2};
        for (int k = 0; k < 4; ++k)
          for (int64_t i = 0; i < count; ++i) part[k][i] = from[k].get(start + i);
        gradients<M>(a, b, grad, count, T(eps), grad_a ? &to_a : nullptr, grad_b ? &to_b : nullptr);
        if (grad_a) write(to_a, start, count, *grad_a);
        if (grad_b) write(to_b, start, count, *grad_b);
      });
    });
  }

  static void use_large_pages(const Tensor& matrix) { detsearch::use_large_pages(matrix); }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(detsearch, m) {
  m.def("box_pairwise(Tensor gt, Tensor priors, Tensor? splits, int measure, float eps) -> Tensor");
  m.def("box_pairwise_out(Tensor gt, Tensor priors, Tensor? splits, int measure, float eps, Tensor(a!) out) -> ()");
  m.def(
      "box_pairwise_areas(Tensor gt, Tensor priors, Tensor? splits, int measure, float eps)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("box_aligned(Tensor a, Tensor b, int measure, float eps) -> Tensor");
  m.def("box_aligned_areas(Tensor a, Tensor b, int measure, float eps) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "box_aligned_backward(Tensor a, Tensor b, Tensor? value, Tensor? shared, Tensor? covered, Tensor? hull,"
      " int measure, float eps, bool need_a, bool need_b) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(detsearch, CPU, m) { implement<Cpu>(m); }

}  // namespace detsearch::boxes
