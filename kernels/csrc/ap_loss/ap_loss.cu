// Parameterized AP loss on a GPU, as in ap_loss.cpp: thresholds are sorted, scores are counted into the bins between
// them, and two scans run over the bins. NaN and indices outside of the scores make the loss NaN: telling the host
// would stall it.

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cub/cub.cuh>
#include <limits>

#include "ap_loss/ap_loss_gpu.h"
#include "ap_loss/ap_loss_operators.h"
#include "common/gpu.h"

namespace detsearch::ap {
namespace {

constexpr int kMaxBlocks = 1024;  // threads take several scores each

using gpu::Buffer;

// A stream that also runs steps of CUDA and cub.
class Stream : public gpu::Stream {
 public:
  using gpu::Stream::Stream;

  // Starts a kernel with a thread for every item, or fewer that take several. None for no item: CUDA refuses 0 blocks.
  template <typename... Formal, typename... Actual>
  void start(void (*kernel)(Formal...), int64_t items, int64_t shared, Actual... arguments) const {
    if (items == 0) return;
    const int64_t blocks = std::min<int64_t>((items + kThreads - 1) / kThreads, kMaxBlocks);
    launch(kernel, blocks, kThreads, shared, arguments...);
  }

  void clear(void* memory, int64_t bytes) const { STD_CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, get())); }

  // Sorts thresholds with their owners.
  void sort(const Tensor& like, const double* from, double* to, const int32_t* value_from, int32_t* value_to,
            int64_t count) const {
    in_memory(like, [=, this](void* work, size_t& bytes) {
      return cub::DeviceRadixSort::SortPairs(work, bytes, from, to, value_from, value_to, static_cast<int>(count), 0,
                                             64, get());
    });
  }

  void scan(const Tensor& like, const RunningSums* from, RunningSums* to, int64_t count) const {
    in_memory(like, [=, this](void* work, size_t& bytes) {
      return cub::DeviceScan::InclusiveScan(work, bytes, from, to, JoinRunningSums(), static_cast<int>(count), get());
    });
  }

 private:
  // Calls cub twice: without memory it says how much it needs, with memory it does the work.
  template <typename Call>
  void in_memory(const Tensor& like, Call call) const {
    size_t bytes = 0;
    STD_CUDA_CHECK(call(nullptr, bytes));
    const Buffer<char> work(like, static_cast<int64_t>(bytes));
    STD_CUDA_CHECK(call(work.get(), bytes));
  }
};

struct Cuda {
  template <typename T, typename Index>
  static Outputs forward(const Tensor& scores, const Tensor& positives, const Tensor& quality, const Loss& loss) {
    const Stream stream(scores);
    const int64_t n = scores.numel(), rows = positives.numel(), count = rows * loss.merged.steps;
    STD_TORCH_CHECK(n < (int64_t(1) << 32), "at most 2^32 scores, got ", n);
    Tensor value = torch::stable::new_empty(scores, {}),
           bins = torch::stable::new_empty(scores, {n}, sizeof(Index) == 2 ? ScalarType::Short : ScalarType::Int),
           slopes = torch::stable::new_empty(scores, {count + 1}), by_score = torch::stable::new_empty(scores, {rows}),
           by_quality = torch::stable::new_empty(scores, {rows});
    const T *s = scores.const_data_ptr<T>(), *u = quality.const_data_ptr<T>();
    Index* bin_of_score = static_cast<Index*>(bins.mutable_data_ptr());

    const Buffer<T> edges(scores, count);
    T* edge = edges.get();
    const Buffer<double> own(scores, rows), threshold(scores, count), at(scores, count);
    const Buffer<double> sums(scores, 3 * (count + 1));
    const Buffer<int32_t> owner_before(scores, count), owner(scores, count), position(scores, count), bin(scores, rows);
    const Buffer<unsigned> number(scores, count + 1);
    const Buffer<int> wrong(scores, 1);
    const Buffer<RunningSums> running(scores, count), scanned(scores, count);
    const Buffer<Row> row(scores, rows);
    // one allocation, so that one call clears all three
    double *sum = sums.get(), *deficit = sum + count + 1, *deficit_sum = deficit + count + 1;
    stream.clear(sum, 3 * (count + 1) * sizeof(double));
    stream.clear(number.get(), (count + 1) * sizeof(unsigned));
    stream.clear(wrong.get(), sizeof(int));

    stream.start(make_thresholds<T>, rows, 0, loss.merged, s, n, positives.const_data_ptr<int64_t>(), u, rows,
                 own.get(), threshold.get(), owner_before.get(), wrong.get());
    if (count) stream.sort(scores, threshold.get(), at.get(), owner_before.get(), owner.get(), count);
    stream.start(make_edges<T>, count, 0, at.get(), owner.get(), count, edge, position.get());
    const int64_t bytes = count * int64_t(sizeof(double) + sizeof(T) + sizeof(unsigned));
    // in shared memory where it fits: most scores fall into few bins, and blocks would queue at the same addresses
    const bool local = stream.allow_shared(fill_bins<T, Index>, bytes);
    stream.start(fill_bins<T, Index>, n, local ? bytes : 0, s, n, edge, count, local, bin_of_score, sum, number.get(),
                 wrong.get());
    stream.start(weigh_positives<T>, rows, 0, loss.others, own.get(), u, rows, edge, count, bin.get(), deficit,
                 deficit_sum);
    stream.start(make_score_sums, count, 0, at.get(), sum, number.get(), deficit, deficit_sum, count, running.get());
    if (count) stream.scan(scores, running.get(), scanned.get(), count);
    stream.start(make_rows<T>, rows, 0, loss, scanned.get(), position.get(), u, rows, count, row.get());
    stream.start(make_changes, count, 0, loss.merged, row.get(), at.get(), owner.get(), count, running.get());
    if (count) stream.scan(scores, running.get(), scanned.get(), count);
    stream.start(write_slopes<T>, count + 1, 0, scanned.get(), count, wrong.get(), slopes.mutable_data_ptr<T>());
    stream.start(write_positive_gradients<T>, rows, 0, loss, row.get(), scanned.get(), at.get(), bin.get(), own.get(),
                 u, rows, wrong.get(), by_score.mutable_data_ptr<T>(), by_quality.mutable_data_ptr<T>());
    stream.start(write_loss<T>, 1, 0, row.get(), rows, wrong.get(), value.mutable_data_ptr<T>());
    return {value, bins, slopes, by_score, by_quality};
  }

  template <typename T, typename Index>
  static Tensor backward(const Tensor& positives, const Tensor& bins, const Tensor& slopes, const Tensor& by_score,
                         const Tensor& gradient) {
    const Stream stream(bins);
    const int64_t n = bins.numel(), rows = positives.numel();
    Tensor result = torch::stable::new_empty(slopes, {n});
    const T* factor = gradient.const_data_ptr<T>();
    T* out = result.mutable_data_ptr<T>();
    stream.start(look_up_gradients<T, Index>, n, 0, static_cast<const Index*>(bins.const_data_ptr()), n,
                 slopes.const_data_ptr<T>(), factor, out);
    stream.start(overwrite_positives<T>, rows, 0, positives.const_data_ptr<int64_t>(), by_score.const_data_ptr<T>(),
                 rows, n, factor, out);
    return result;
  }
};

}  // namespace
}  // namespace detsearch::ap

STABLE_TORCH_LIBRARY_IMPL(detsearch, CUDA, m) { detsearch::ap::implement<detsearch::ap::Cuda>(m); }
