// Parameterized AP loss on a GPU, the way of ap_loss.cpp: thresholds sorted, scores counted into the bins between
// them, two scans over the bins. Bad values (NaN, indices outside of scores) make the loss NaN: telling the host
// would stall it.

#include "ap_loss.h"

#include <cuda_runtime.h>

#include <cub/cub.cuh>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <limits>
#include <tuple>

namespace detsearch::ap {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 256;
constexpr int kMostBlocks = 1024;  // threads take several scores each

// Memory for a call, from torch's allocator.
template <typename T>
class Buffer {
 public:
  Buffer(const Tensor& like, int64_t count)
      : bytes_(torch::stable::new_empty(like, {std::max<int64_t>(count, 1) * int64_t(sizeof(T))}, ScalarType::Byte)) {}
  T* get() const { return static_cast<T*>(bytes_.mutable_data_ptr()); }

 private:
  Tensor bytes_;
};

// Two running sums and how fast they grow over the way to the next element.
struct Span {
  double width, rate[2], sum[2];
};

struct Join {
  __host__ __device__ Span operator()(const Span& before, const Span& next) const {
    Span both;
    both.width = before.width + next.width;
    for (int k = 0; k < 2; ++k) {
      both.rate[k] = before.rate[k] + next.rate[k];
      both.sum[k] = before.sum[k] + next.sum[k] + before.rate[k] * next.width;
    }
    return both;
  }
};

__device__ int64_t first_item() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ int64_t item_step() { return int64_t(gridDim.x) * blockDim.x; }

// How many edges lie at or below a score; 0 for NaN.
template <typename T>
__device__ int64_t bin_of(const T* edges, int64_t count, T score) {
  if (count == 0 || !(score >= edges[0])) return 0;
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (edges[middle] <= score) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low + 1;
}

template <typename T>
__global__ void make_thresholds(Ladder ladder, const T* scores, int64_t n, const int64_t* positives, const T* quality,
                                int64_t rows, double* own, double* threshold, int32_t* owner, int* wrong) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    const bool inside = positives[i] >= 0 && positives[i] < n;
    double score = inside ? static_cast<double>(scores[positives[i]]) : 0.0;
    if (!inside || quality[i] != quality[i] || !(fabs(score) <= kFarthest)) {
      atomicOr(wrong, 1);
      score = 0.0;
    }
    own[i] = score;
    for (int k = 0; k < ladder.steps; ++k) {
      threshold[i * ladder.steps + k] = score + ladder.offset[k];
      owner[i * ladder.steps + k] = static_cast<int32_t>(i * ladder.steps + k);
    }
  }
}

// Edges, and where the thresholds went.
template <typename T>
__global__ void make_edges(const double* at, const int32_t* owner, int64_t count, T* edges, int32_t* place) {
  for (int64_t b = first_item(); b < count; b += item_step()) {
    edge_of(at[b], &edges[b]);
    place[owner[b]] = static_cast<int32_t>(b);
  }
}

// Counts and sums of the scores in the bins between two thresholds, and the count above all; `local`: each block
// collects in its own memory first.
template <typename T>
__global__ void fill_bins(const T* scores, int64_t n, const T* edges, int64_t count, bool local, double* sum,
                          unsigned* number, int* wrong) {
  extern __shared__ double shared[];
  double* my_sum = sum;
  unsigned* my_number = number;
  const T* my_edges = edges;
  if (local) {
    my_sum = shared;
    T* copy = reinterpret_cast<T*>(shared + count);
    my_number = reinterpret_cast<unsigned*>(copy + count);
    my_edges = copy;
    for (int64_t b = threadIdx.x; b < count; b += blockDim.x) {
      my_sum[b] = 0.0;
      my_number[b] = 0;
      copy[b] = edges[b];
    }
    __syncthreads();
  }
  unsigned above = 0;
  bool bad = false;
  for (int64_t j = first_item(); j < n; j += item_step()) {
    const T score = scores[j];
    const int64_t bin = bin_of(my_edges, count, score);
    bad |= score != score;
    if (bin == count) {
      ++above;
    } else if (bin > 0) {
      atomicAdd(&my_sum[bin], static_cast<double>(score));
      atomicAdd(&my_number[bin], 1u);
    }
  }
  if (above) atomicAdd(&number[count], above);
  if (bad) atomicOr(wrong, 1);
  if (!local) return;
  __syncthreads();
  for (int64_t b = threadIdx.x; b < count; b += blockDim.x) {
    if (my_number[b] == 0) continue;
    atomicAdd(&sum[b], my_sum[b]);
    atomicAdd(&number[b], my_number[b]);
  }
}

// What positives weigh less than 1, in their bins.
template <typename T>
__global__ void weigh_positives(Curve others, const double* own, const T* quality, int64_t rows, const T* edges,
                                int64_t count, int32_t* bin, double* less, double* less_sum) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    bin[i] = static_cast<int32_t>(bin_of(edges, count, static_cast<T>(own[i])));
    const double part = others.value(static_cast<double>(quality[i]));
    atomicAdd(&less[bin[i]], part);
    atomicAdd(&less_sum[bin[i]], part * own[i]);
  }
}

// From the highest threshold down: the scores right of each.
__global__ void make_spans(const double* at, const double* sum, const unsigned* number, const double* less,
                           const double* less_sum, int64_t count, Span* spans) {
  for (int64_t r = first_item(); r < count; r += item_step()) {
    const int64_t b = count - 1 - r;
    const double all = static_cast<double>(number[b + 1]), weighted = all - less[b + 1];
    Span span = {0.0, {all, weighted}, {0.0, 0.0}};
    if (r > 0) {
      span.width = at[b + 1] - at[b];
      span.sum[0] = at_least_0(sum[b + 1] - all * at[b]);
      span.sum[1] = at_least_0((sum[b + 1] - less_sum[b + 1]) - weighted * at[b]);
    }
    spans[r] = span;
  }
}

__device__ Prefix prefix_of(const Span& span) { return {span.rate[0], span.sum[0], span.rate[1], span.sum[1]}; }

template <typename T>
__global__ void make_rows(Loss loss, const Span* spans, const int32_t* place, const T* quality, int64_t rows,
                          int64_t count, Row* out) {
  const int64_t steps = loss.ladder.steps;
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    Sums sums = {0.0, 0.0, 0.0, 0.0};
    Prefix left = prefix_of(spans[count - 1 - place[i * steps]]);
    for (int64_t k = 0; k + 1 < steps; ++k) {
      const Prefix right = prefix_of(spans[count - 1 - place[i * steps + k + 1]]);
      sums.add(loss.ladder, static_cast<int>(k), left, right);
      left = right;
    }
    out[i] = row_of(loss, sums, static_cast<double>(quality[i]));
  }
}

// From the lowest threshold up: by how much it changes the slopes.
__global__ void make_changes(Ladder ladder, const Row* row, const double* at, const int32_t* owner, int64_t count,
                             Span* spans) {
  for (int64_t b = first_item(); b < count; b += item_step()) {
    const int64_t i = owner[b] / ladder.steps, k = owner[b] % ladder.steps;
    const double above = ladder.above[k] - (k ? ladder.above[k - 1] : 0.0);
    const double rank = ladder.rank[k] - (k ? ladder.rank[k - 1] : 0.0);
    spans[b] = {b ? at[b] - at[b - 1] : 0.0, {row[i].by_above * above, row[i].by_rank * rank}, {0.0, 0.0}};
  }
}

template <typename T>
__global__ void give_slopes(const Span* columns, int64_t count, const int* wrong, T* slopes) {
  for (int64_t b = first_item(); b <= count; b += item_step()) {
    double slope = 0.0;  // below and above all thresholds nothing changes
    if (b > 0 && b < count) slope = columns[b - 1].rate[0] - columns[b - 1].rate[1];
    slopes[b] = *wrong ? static_cast<T>(NAN) : static_cast<T>(slope);
  }
}

template <typename T>
__global__ void give_positives(Loss loss, const Row* row, const Span* columns, const double* at, const int32_t* bin,
                               const double* own, const T* quality, int64_t rows, const int* wrong, T* by_score,
                               T* by_quality) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    const int64_t threshold = bin[i] > 0 ? bin[i] - 1 : 0;
    const Span& span = columns[threshold];
    const Column column = {span.rate[0], span.rate[1], span.sum[0]};
    const double u = static_cast<double>(quality[i]), beyond = own[i] - at[threshold];
    by_score[i] = static_cast<T>(*wrong ? NAN : score_gradient(loss, row[i], column, u));
    by_quality[i] = static_cast<T>(*wrong ? NAN : quality_gradient(loss, row[i], column, u, beyond));
  }
}

// One block; always in the same order, so the same sum every time.
template <typename T>
__global__ void give_loss(const Row* row, int64_t rows, const int* wrong, T* value) {
  __shared__ double part[kThreads];
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < rows; i += kThreads) sum += row[i].value;
  part[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *value = static_cast<T>(*wrong ? NAN : part[0]);
}

template <typename T>
__global__ void look_up(const T* scores, int64_t n, const T* edges, const T* slopes, int64_t count, bool local,
                        const T* factor, T* out) {
  extern __shared__ double shared[];
  const T *my_edges = edges, *my_slopes = slopes;
  if (local) {
    T* copy = reinterpret_cast<T*>(shared);
    for (int64_t b = threadIdx.x; b < count; b += blockDim.x) copy[b] = edges[b];
    for (int64_t b = threadIdx.x; b <= count; b += blockDim.x) copy[count + b] = slopes[b];
    my_edges = copy;
    my_slopes = copy + count;
    __syncthreads();
  }
  for (int64_t j = first_item(); j < n; j += item_step()) {
    out[j] = my_slopes[bin_of(my_edges, count, scores[j])] * *factor;
  }
}

template <typename T>
__global__ void place_positives(const int64_t* positives, const T* by_score, int64_t rows, int64_t n, const T* factor,
                                T* out) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    if (positives[i] >= 0 && positives[i] < n) out[positives[i]] = by_score[i] * *factor;
  }
}

// The device and stream that torch uses.
class Stream {
 public:
  explicit Stream(const Tensor& of) : guard_(of.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(of.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
    int device = 0;
    STD_CUDA_CHECK(cudaGetDevice(&device));
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&shared_, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  }

  // Starts a kernel with a thread for every item, or fewer.
  template <typename... Formal, typename... Actual>
  void start(void (*kernel)(Formal...), int64_t items, int64_t shared, Actual... arguments) const {
    if (items == 0) return;
    const int64_t blocks = std::min<int64_t>((items + kThreads - 1) / kThreads, kMostBlocks);
    kernel<<<static_cast<unsigned>(blocks), kThreads, static_cast<size_t>(shared), stream_>>>(arguments...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // Whether a kernel may use that much of a block's memory.
  template <typename Kernel>
  bool fits(Kernel kernel, int64_t bytes) const {
    if (bytes > shared_) return false;
    STD_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    return true;
  }

  void clear(void* memory, int64_t bytes) const { STD_CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, stream_)); }

  // Sorts thresholds with their owners.
  void sort(const Tensor& like, const double* from, double* to, const int32_t* value_from, int32_t* value_to,
            int64_t count) const {
    size_t bytes = 0;
    STD_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(nullptr, bytes, from, to, value_from, value_to,
                                                   static_cast<int>(count), 0, 64, stream_));
    const Buffer<char> work(like, static_cast<int64_t>(bytes));
    STD_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(work.get(), bytes, from, to, value_from, value_to,
                                                   static_cast<int>(count), 0, 64, stream_));
  }

  void scan(const Tensor& like, const Span* from, Span* to, int64_t count) const {
    size_t bytes = 0;
    STD_CUDA_CHECK(
        cub::DeviceScan::InclusiveScan(nullptr, bytes, from, to, Join(), static_cast<int>(count), stream_));
    const Buffer<char> work(like, static_cast<int64_t>(bytes));
    STD_CUDA_CHECK(
        cub::DeviceScan::InclusiveScan(work.get(), bytes, from, to, Join(), static_cast<int>(count), stream_));
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
  int shared_ = 0;
};

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename T>
Outputs forward_as(const Tensor& scores, const Tensor& positives, const Tensor& quality, const Tensor& knots,
                   bool through_denominator) {
  const Stream stream(scores);
  const int64_t n = scores.numel(), rows = positives.numel();
  const Loss loss = read(knots.const_data_ptr<double>(), knots.size(0), rows, through_denominator);
  const int64_t count = rows * loss.ladder.steps;
  STD_TORCH_CHECK(count < (int64_t(1) << 31) && n < (int64_t(1) << 32), "at most 2^31 thresholds and 2^32 scores, got ",
                  count, " and ", n);
  Tensor value = torch::stable::new_empty(scores, {}), edges = torch::stable::new_empty(scores, {count}),
         slopes = torch::stable::new_empty(scores, {count + 1}), by_score = torch::stable::new_empty(scores, {rows}),
         by_quality = torch::stable::new_empty(scores, {rows});
  const T *s = scores.const_data_ptr<T>(), *u = quality.const_data_ptr<T>();
  T* edge = edges.mutable_data_ptr<T>();

  const Buffer<double> own(scores, rows), threshold(scores, count), at(scores, count);
  const Buffer<double> sums(scores, 3 * (count + 1));
  const Buffer<int32_t> owner_before(scores, count), owner(scores, count), place(scores, count), bin(scores, rows);
  const Buffer<unsigned> number(scores, count + 1);
  const Buffer<int> wrong(scores, 1);
  const Buffer<Span> spans(scores, count), scanned(scores, count);
  const Buffer<Row> row(scores, rows);
  double *sum = sums.get(), *less = sum + count + 1, *less_sum = less + count + 1;
  stream.clear(sum, 3 * (count + 1) * sizeof(double));
  stream.clear(number.get(), (count + 1) * sizeof(unsigned));
  stream.clear(wrong.get(), sizeof(int));

  stream.start(make_thresholds<T>, rows, 0, loss.ladder, s, n, positives.const_data_ptr<int64_t>(), u, rows, own.get(),
               threshold.get(), owner_before.get(), wrong.get());
  if (count) stream.sort(scores, threshold.get(), at.get(), owner_before.get(), owner.get(), count);
  stream.start(make_edges<T>, count, 0, at.get(), owner.get(), count, edge, place.get());
  const int64_t bytes = count * int64_t(sizeof(double) + sizeof(T) + sizeof(unsigned));
  const bool local = stream.fits(fill_bins<T>, bytes);
  stream.start(fill_bins<T>, n, local ? bytes : 0, s, n, edge, count, local, sum, number.get(), wrong.get());
  stream.start(weigh_positives<T>, rows, 0, loss.others, own.get(), u, rows, edge, count, bin.get(), less, less_sum);
  stream.start(make_spans, count, 0, at.get(), sum, number.get(), less, less_sum, count, spans.get());
  if (count) stream.scan(scores, spans.get(), scanned.get(), count);
  stream.start(make_rows<T>, rows, 0, loss, scanned.get(), place.get(), u, rows, count, row.get());
  stream.start(make_changes, count, 0, loss.ladder, row.get(), at.get(), owner.get(), count, spans.get());
  if (count) stream.scan(scores, spans.get(), scanned.get(), count);
  stream.start(give_slopes<T>, count + 1, 0, scanned.get(), count, wrong.get(), slopes.mutable_data_ptr<T>());
  stream.start(give_positives<T>, rows, 0, loss, row.get(), scanned.get(), at.get(), bin.get(), own.get(), u, rows,
               wrong.get(), by_score.mutable_data_ptr<T>(), by_quality.mutable_data_ptr<T>());
  stream.start(give_loss<T>, 1, 0, row.get(), rows, wrong.get(), value.mutable_data_ptr<T>());
  return {value, edges, slopes, by_score, by_quality};
}

template <typename T>
Tensor backward_as(const Tensor& scores, const Tensor& positives, const Tensor& edges, const Tensor& slopes,
                   const Tensor& by_score, const Tensor& gradient) {
  const Stream stream(scores);
  Tensor result = torch::stable::empty_like(scores);
  const int64_t n = scores.numel(), count = edges.numel(), rows = positives.numel();
  const T* factor = gradient.const_data_ptr<T>();
  T* out = result.mutable_data_ptr<T>();
  const int64_t bytes = (2 * count + 1) * int64_t(sizeof(T));
  const bool local = stream.fits(look_up<T>, bytes);
  stream.start(look_up<T>, n, local ? bytes : 0, scores.const_data_ptr<T>(), n, edges.const_data_ptr<T>(),
               slopes.const_data_ptr<T>(), count, local, factor, out);
  stream.start(place_positives<T>, rows, 0, positives.const_data_ptr<int64_t>(), by_score.const_data_ptr<T>(), rows, n,
               factor, out);
  return result;
}

Outputs forward(Tensor scores, Tensor positives, Tensor quality, Tensor knots, bool through_denominator) {
  return scores.scalar_type() == ScalarType::Double
             ? forward_as<double>(scores, positives, quality, knots, through_denominator)
             : forward_as<float>(scores, positives, quality, knots, through_denominator);
}

Tensor backward(Tensor scores, Tensor positives, Tensor edges, Tensor slopes, Tensor by_score, Tensor gradient) {
  return scores.scalar_type() == ScalarType::Double
             ? backward_as<double>(scores, positives, edges, slopes, by_score, gradient)
             : backward_as<float>(scores, positives, edges, slopes, by_score, gradient);
}

}  // namespace
}  // namespace detsearch::ap

STABLE_TORCH_LIBRARY_IMPL(detsearch, CUDA, m) {
  m.impl("parameterized_ap_loss", TORCH_BOX(&detsearch::ap::forward));
  m.impl("parameterized_ap_loss_backward", TORCH_BOX(&detsearch::ap::backward));
}
