// Overlap of boxes on the CPU: of all pairs, of given pairs, and the gradient of the latter.
//
// Boxes are read a block at a time into one array per coordinate, which loops then run over; reading converts
// half precision, so the arithmetic exists in float32 and float64 only. A block of priors meets every ground
// truth while it lies in the first-level cache.

#include "boxes.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace detsearch::boxes {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t BLOCK = 512, PAIRS_A_TASK = 32768;

template <typename T>
struct Block {
  T x1[BLOCK], y1[BLOCK], x2[BLOCK], y2[BLOCK], area[BLOCK], angle[BLOCK];

  Box<T> box(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i]}; }
};

template <typename S, typename T>
void read_as(const S* from, int64_t count, Block<T>& to) {
  for (int64_t i = 0; i < count; ++i) {
    to.x1[i] = static_cast<T>(from[4 * i]);
    to.y1[i] = static_cast<T>(from[4 * i + 1]);
    to.x2[i] = static_cast<T>(from[4 * i + 2]);
    to.y2[i] = static_cast<T>(from[4 * i + 3]);
  }
}

// Calls f(pointer) with the pointer in the tensor's own type.
template <typename T, typename F>
void typed(const Tensor& tensor, F f) {
  void* data = tensor.data_ptr();
  if constexpr (std::is_same_v<T, double>) return f(static_cast<double*>(data));
  switch (tensor.scalar_type()) {
    case ScalarType::BFloat16: return f(static_cast<torch::headeronly::BFloat16*>(data));
    case ScalarType::Half: return f(static_cast<torch::headeronly::Half*>(data));
    default: return f(static_cast<float*>(data));
  }
}

template <typename T>
void read(const Tensor& boxes, int64_t start, int64_t count, Block<T>& to, bool with_angle) {
  typed<T>(boxes, [&](auto* data) { read_as(data + 4 * start, count, to); });
  for (int64_t i = 0; i < count; ++i) to.area[i] = area(to.box(i));
  if (with_angle)
    for (int64_t i = 0; i < count; ++i) to.angle[i] = angle(to.box(i));
}

template <typename T>
void write(const Block<T>& from, int64_t start, int64_t count, const Tensor& boxes) {
  typed<T>(boxes, [&](auto* data) {
    using S = std::remove_pointer_t<decltype(data)>;
    data += 4 * start;
    for (int64_t i = 0; i < count; ++i) {
      data[4 * i] = static_cast<S>(from.x1[i]);
      data[4 * i + 1] = static_cast<S>(from.y1[i]);
      data[4 * i + 2] = static_cast<S>(from.x2[i]);
      data[4 * i + 3] = static_cast<S>(from.y2[i]);
    }
  });
}

template <typename F>
void by_measure(int64_t measure, F f) {
  switch (measure) {
    case IOU: return f(std::integral_constant<int, IOU>{});
    case GIOU: return f(std::integral_constant<int, GIOU>{});
    case DIOU: return f(std::integral_constant<int, DIOU>{});
    case CIOU: return f(std::integral_constant<int, CIOU>{});
    default: STD_TORCH_CHECK(false, "measure is 0 (IoU) to 3 (CIoU), got ", measure);
  }
}

// Calls f with the measure, whether areas are wanted, and a number of the type to compute in.
template <typename F>
void choose(int64_t measure, bool areas, const Tensor& boxes, F f) {
  const bool is_double = boxes.scalar_type() == ScalarType::Double;
  by_measure(measure, [&](auto m) {
    if (areas)
      is_double ? f(m, std::true_type{}, double{}) : f(m, std::true_type{}, float{});
    else
      is_double ? f(m, std::false_type{}, double{}) : f(m, std::false_type{}, float{});
  });
}

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

// Results (value, intersection, union, hull) from an element on; the last three only where areas are wanted.
template <typename T>
struct Results {
  T *value, *shared, *covered, *hull;

  static Results of(const std::vector<Tensor>& tensors) {
    const bool areas = tensors.size() > 1;
    const auto data = [&](int i) { return areas || i == 0 ? static_cast<T*>(tensors[i].data_ptr()) : nullptr; };
    return {data(0), data(1), data(2), data(3)};
  }
  Results from(int64_t i) const {
    return shared == nullptr ? Results{value + i, nullptr, nullptr, nullptr}
                             : Results{value + i, shared + i, covered + i, hull + i};
  }
};

template <int measure, bool areas, typename T>
void row(Box<T> a, T area_a, T angle_a, const Block<T>& priors, int64_t count, T eps, Results<T> to) {
  T* __restrict value = to.value;
  T* __restrict shared = to.shared;
  T* __restrict covered = to.covered;
  T* __restrict hull = to.hull;
  for (int64_t i = 0; i < count; ++i) {
    const T angle_b = measure == CIOU ? priors.angle[i] : T(0);
    const auto found = compare<measure>(a, area_a, angle_a, priors.box(i), priors.area[i], angle_b, eps);
    value[i] = found.value;
    if constexpr (areas) {
      shared[i] = found.shared;
      covered[i] = found.covered;
      hull[i] = found.hull;
    }
  }
}

// priors (A, 4) for all rows, or (B, A, 4) with `splits` (B + 1,) that say which rows are image b's.
void pairwise_into(const Tensor& gt, const Tensor& priors, const std::optional<Tensor>& splits, int64_t measure,
                   double eps, const std::vector<Tensor>& results) {
  const int64_t images = splits ? priors.size(0) : 1, width = priors.size(priors.dim() - 2);
  const int64_t rows[2] = {0, gt.size(0)};
  const int64_t* row_of = splits ? static_cast<const int64_t*>(splits->data_ptr()) : rows;
  STD_TORCH_CHECK(row_of[0] == 0 && row_of[images] == gt.size(0) && std::is_sorted(row_of, row_of + images + 1),
                  "splits must rise from 0 to the number of ground truths");
  const int64_t blocks = (width + BLOCK - 1) / BLOCK;
  choose(measure, results.size() > 1, gt, [&](auto m, auto areas, auto zero) {
    using T = decltype(zero);
    std::vector<Block<T>> truth((gt.size(0) + BLOCK - 1) / BLOCK);
    for (size_t i = 0; i < truth.size(); ++i)
      read(gt, i * BLOCK, std::min(BLOCK, gt.size(0) - int64_t(i) * BLOCK), truth[i], m == CIOU);
    const auto to = Results<T>::of(results);
    const int64_t a_block = BLOCK * std::max<int64_t>(1, gt.size(0) / std::max<int64_t>(1, images));
    torch::stable::parallel_for(0, images * blocks, PAIRS_A_TASK / a_block + 1, [&](int64_t begin, int64_t end) {
      Block<T> block;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t image = task / blocks, start = (task % blocks) * BLOCK;
        const int64_t count = std::min(BLOCK, width - start);
        if (row_of[image] == row_of[image + 1]) continue;
        read(priors, image * width + start, count, block, m == CIOU);
        for (int64_t g = row_of[image]; g < row_of[image + 1]; ++g) {
          const Block<T>& of = truth[g / BLOCK];
          const int64_t i = g % BLOCK;
          row<m, areas>(of.box(i), of.area[i], m == CIOU ? of.angle[i] : T(0), block, count, T(eps),
                        to.from(g * width + start));
        }
      }
    });
  });
}

void pairwise_checked(const Tensor& gt, const Tensor& priors, const std::optional<Tensor>& splits,
                      int64_t measure, double eps, const std::vector<Tensor>& results) {
  check(gt, priors);
  STD_TORCH_CHECK(gt.dim() == 2 && priors.dim() == (splits ? 3 : 2),
                  "ground truths must be (G, 4) and priors (A, 4), or (B, A, 4) with splits");
  STD_TORCH_CHECK(!splits || (splits->scalar_type() == ScalarType::Long && splits->dim() == 1 &&
                              splits->size(0) == priors.size(0) + 1),
                  "splits must be int64 with one number more than there are images");
  std::optional<Tensor> rows;
  if (splits) rows = torch::stable::contiguous(*splits);
  pairwise_into(torch::stable::contiguous(gt), torch::stable::contiguous(priors), rows, measure, eps, results);
}

// A matrix of megabytes is fresh memory, and touching it for the first time costs several times the arithmetic.
// In large pages, where the system grants them, it costs little.
void prefer_large_pages([[maybe_unused]] const Tensor& matrix) {
#if defined(__linux__)
  constexpr uintptr_t PAGE = 2 << 20;
  const auto start = reinterpret_cast<uintptr_t>(matrix.data_ptr());
  const auto end = start + matrix.numel() * (matrix.scalar_type() == ScalarType::Double ? 8 : 4);
  const auto first = (start + PAGE - 1) / PAGE * PAGE;
  if (first + PAGE <= end) madvise(reinterpret_cast<void*>(first), (end - first) / PAGE * PAGE, MADV_HUGEPAGE);
#endif
}

Tensor pairwise_empty(const Tensor& gt, const Tensor& priors) {
  Tensor matrix = torch::stable::new_empty(gt, {gt.size(0), priors.size(priors.dim() - 2)}, computed(gt));
  prefer_large_pages(matrix);
  return matrix;
}

Tensor pairwise(const Tensor& gt, const Tensor& priors, const std::optional<Tensor>& splits, int64_t measure,
                double eps) {
  Tensor value = pairwise_empty(gt, priors);
  pairwise_checked(gt, priors, splits, measure, eps, {value});
  return value;
}

void pairwise_out(const Tensor& gt, const Tensor& priors, const std::optional<Tensor>& splits, int64_t measure,
                  double eps, Tensor out) {
  STD_TORCH_CHECK(out.dim() == 2 && out.size(0) == gt.size(0) && out.size(1) == priors.size(priors.dim() - 2) &&
                      out.is_contiguous() && out.scalar_type() == computed(gt),
                  "out must be contiguous, (ground truths, priors), and float32 or, for float64 boxes, float64");
  pairwise_checked(gt, priors, splits, measure, eps, {out});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pairwise_areas(const Tensor& gt, const Tensor& priors,
                                                          const std::optional<Tensor>& splits, int64_t measure,
                                                          double eps) {
  std::vector<Tensor> to;
  for (int i = 0; i < 4; ++i) to.push_back(pairwise_empty(gt, priors));
  pairwise_checked(gt, priors, splits, measure, eps, to);
  return {to[0], to[1], to[2], to[3]};
}

// Calls f(start, count) for blocks of the boxes, on all threads.
template <typename F>
void for_blocks(int64_t boxes, F f) {
  torch::stable::parallel_for(0, (boxes + BLOCK - 1) / BLOCK, PAIRS_A_TASK / BLOCK / 4, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      f(block * BLOCK, std::min(BLOCK, boxes - block * BLOCK));
  });
}

template <int measure, bool areas, typename T>
void pairs(const Block<T>& a, const Block<T>& b, int64_t count, T eps, Results<T> to) {
  T* __restrict value = to.value;
  T* __restrict shared = to.shared;
  T* __restrict covered = to.covered;
  T* __restrict hull = to.hull;
  for (int64_t i = 0; i < count; ++i) {
    const T angle_a = measure == CIOU ? a.angle[i] : T(0), angle_b = measure == CIOU ? b.angle[i] : T(0);
    const auto found = compare<measure>(a.box(i), a.area[i], angle_a, b.box(i), b.area[i], angle_b, eps);
    value[i] = found.value;
    if constexpr (areas) {
      shared[i] = found.shared;
      covered[i] = found.covered;
      hull[i] = found.hull;
    }
  }
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
  const Tensor from_a = torch::stable::contiguous(boxes_a), from_b = torch::stable::contiguous(boxes_b);
  choose(measure, results.size() > 1, from_a, [&](auto m, auto areas, auto zero) {
    using T = decltype(zero);
    const auto to = Results<T>::of(results);
    for_blocks(from_a.numel() / 4, [&](int64_t start, int64_t count) {
      Block<T> a, b;
      read(from_a, start, count, a, m == CIOU);
      read(from_b, start, count, b, m == CIOU);
      pairs<m, areas>(a, b, count, T(eps), to.from(start));
    });
  });
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

// Gradient of one result, flat, as it arrives: absent, or one number for all (stride 0), or one a box.
template <typename T>
struct Arriving {
  const T* data = nullptr;
  int64_t stride = 0;
  Tensor keep;

  explicit Arriving(const std::optional<Tensor>& gradient) {
    if (!gradient) return;
    keep = torch::stable::reshape(*gradient, {-1});
    data = static_cast<const T*>(keep.data_ptr());
    stride = keep.numel() > 0 ? keep.stride(0) : 0;
  }
  void read(int64_t start, int64_t count, T* to) const {
    if (data == nullptr || stride == 0)
      std::fill(to, to + count, data == nullptr ? T(0) : *data);
    else
      for (int64_t i = 0; i < count; ++i) to[i] = data[(start + i) * stride];
  }
};

template <int measure, typename T>
void pair_gradients(const Block<T>& a, const Block<T>& b, const Block<T>& grad, int64_t count, T eps,
                    Block<T>& to_a, Block<T>& to_b) {
  for (int64_t i = 0; i < count; ++i) {
    const Overlap<T> of{grad.x1[i], grad.y1[i], grad.x2[i], grad.y2[i]};
    Box<T> box_a, box_b;
    gradient<measure>(a.box(i), b.box(i), of, eps, box_a, box_b);
    to_a.x1[i] = box_a.x1, to_a.y1[i] = box_a.y1, to_a.x2[i] = box_a.x2, to_a.y2[i] = box_a.y2;
    to_b.x1[i] = box_b.x1, to_b.y1[i] = box_b.y1, to_b.x2[i] = box_b.x2, to_b.y2[i] = box_b.y2;
  }
}

std::tuple<Tensor, Tensor> aligned_backward(const Tensor& boxes_a, const Tensor& boxes_b,
                                            const std::optional<Tensor>& value,
                                            const std::optional<Tensor>& shared,
                                            const std::optional<Tensor>& covered,
                                            const std::optional<Tensor>& hull, int64_t measure, double eps,
                                            bool need_a, bool need_b) {
  same_shape(boxes_a, boxes_b);
  for (const auto* gradient : {&value, &shared, &covered, &hull})
    STD_TORCH_CHECK(!*gradient || ((*gradient)->numel() == boxes_a.numel() / 4 &&
                                   (*gradient)->scalar_type() == computed(boxes_a)),
                    "a gradient must have a number a box, in the dtype of the result");
  const Tensor from_a = torch::stable::contiguous(boxes_a), from_b = torch::stable::contiguous(boxes_b);
  Tensor grad_a = torch::stable::new_empty(from_a, need_a ? from_a.sizes() : decltype(from_a.sizes())({0}));
  Tensor grad_b = torch::stable::new_empty(from_b, need_b ? from_b.sizes() : decltype(from_b.sizes())({0}));
  choose(measure, false, from_a, [&](auto m, auto, auto zero) {
    using T = decltype(zero);
    const Arriving<T> arriving[4] = {Arriving<T>(value), Arriving<T>(shared), Arriving<T>(covered),
                                     Arriving<T>(hull)};
    for_blocks(from_a.numel() / 4, [&](int64_t start, int64_t count) {
      Block<T> a, b, grad, to_a, to_b;
      read(from_a, start, count, a, false);
      read(from_b, start, count, b, false);
      T* part[4] = {grad.x1, grad.y1, grad.x2, grad.y2};
      for (int i = 0; i < 4; ++i) arriving[i].read(start, count, part[i]);
      pair_gradients<m>(a, b, grad, count, T(eps), to_a, to_b);
      if (need_a) write(to_a, start, count, grad_a);
      if (need_b) write(to_b, start, count, grad_b);
    });
  });
  return {grad_a, grad_b};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(detsearch, m) {
  m.def("box_pairwise(Tensor gt, Tensor priors, Tensor? splits, int measure, float eps) -> Tensor");
  m.def("box_pairwise_out(Tensor gt, Tensor priors, Tensor? splits, int measure, float eps, Tensor(a!) out) -> ()");
  m.def("box_pairwise_areas(Tensor gt, Tensor priors, Tensor? splits, int measure, float eps)"
        " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("box_aligned(Tensor a, Tensor b, int measure, float eps) -> Tensor");
  m.def("box_aligned_areas(Tensor a, Tensor b, int measure, float eps) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("box_aligned_backward(Tensor a, Tensor b, Tensor? value, Tensor? shared, Tensor? covered, Tensor? hull,"
        " int measure, float eps, bool need_a, bool need_b) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(detsearch, CPU, m) {
  m.impl("box_pairwise", TORCH_BOX(&pairwise));
  m.impl("box_pairwise_out", TORCH_BOX(&pairwise_out));
  m.impl("box_pairwise_areas", TORCH_BOX(&pairwise_areas));
  m.impl("box_aligned", TORCH_BOX(&aligned));
  m.impl("box_aligned_areas", TORCH_BOX(&aligned_areas));
  m.impl("box_aligned_backward", TORCH_BOX(&aligned_backward));
}

}  // namespace detsearch::boxes
