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
  template <typename T>
  static void own(const Levels& levels, const Tensor& positives, Tensor& own, Tensor& place) {
    const Stream stream(positives);
    const int64_t rows = positives.numel();
    double* score = own.mutable_data_ptr<double>();
    int64_t* at = place.mutable_data_ptr<int64_t>();
    stream.start(clear_own, rows, 0, rows, score, at);
    for (size_t l = 0; l < levels.layouts.size(); ++l) {
      if (levels.layouts[l].count() == 0) continue;  // and perhaps no classes to divide by
      stream.start(read_own<T>, rows, 0, levels.layouts[l], levels.priors, levels.begin[l],
                   levels.scores[l].const_data_ptr<T>(), positives.const_data_ptr<int64_t>(), rows, score, at);
    }
  }

  template <typename T, typename Index>
  static void bins(const Levels& levels, const Tensor& own, const Tensor& ignored, const Loss& loss, Binned& results) {
    const Stream stream(own);
    const int64_t rows = own.numel(), count = rows * loss.merged.steps, left_out = ignored.numel();
    STD_TORCH_CHECK(levels.count < (int64_t(1) << 32), "at most 2^32 scores, got ", levels.count);
    const Buffer<T> edges(own, count);
    const Buffer<double> threshold(own, count), sum(own, count + 1);
    const Buffer<int32_t> owner(own, count);
    const Buffer<unsigned> number(own, count + 1);
    const Buffer<int> wrong(own, 1);
    T* edge = edges.get();
    double* at = results.at.mutable_data_ptr<double>();
    stream.clear(sum.get(), (count + 1) * sizeof(double));
    stream.clear(number.get(), (count + 1) * sizeof(unsigned));
    stream.clear(wrong.get(), sizeof(int));

    stream.start(find_outside, left_out, 0, ignored.const_data_ptr<int64_t>(), left_out,
                 levels.layouts[0].images * levels.priors, wrong.get());
    stream.start(make_thresholds, rows, 0, loss.merged, own.const_data_ptr<double>(), rows, threshold.get(),
                 owner.get());
    if (count) stream.sort(own, threshold.get(), at, owner.get(), results.owner.mutable_data_ptr<int32_t>(), count);
    stream.start(make_edges<T>, count, 0, at, count, edge);
    const int64_t bytes = count * int64_t(sizeof(double) + sizeof(T) + sizeof(unsigned));
    // in shared memory where it fits: most scores fall into few bins, and blocks would queue at the same addresses
    const bool local = stream.allow_shared(fill_bins<T, Index>, bytes);
    for (size_t l = 0; l < levels.scores.size(); ++l) {
      const T* scores = levels.scores[l].const_data_ptr<T>();
      const LogitLayout& layout = levels.layouts[l];
      Index* bin_of_score = static_cast<Index*>(results.bins[l].mutable_data_ptr());
      stream.start(fill_bins<T, Index>, layout.count(), local ? bytes : 0, scores, layout.count(), edge, count, local,
                   bin_of_score, sum.get(), number.get(), wrong.get());
      if (layout.count())
        stream.start(leave_out<T, Index>, left_out * layout.classes, 0, layout, levels.priors, scores,
                     ignored.const_data_ptr<int64_t>(), left_out, count, bin_of_score, sum.get(), number.get());
    }
    stream.start(write_totals, count + 1, 0, sum.get(), number.get(), count, wrong.get(),
                 results.totals.mutable_data_ptr<double>());
  }

  static void answer(const Tensor& totals, const Tensor& at, const Tensor& owner, const Tensor& own,
                     const Tensor& quality, const Loss& loss, const Answer& out) {
    const Stream stream(own);
    const int64_t rows = own.numel(), count = at.numel();
    const double *threshold = at.const_data_ptr<double>(), *total = totals.const_data_ptr<double>(),
                 *score = own.const_data_ptr<double>(), *u = quality.const_data_ptr<double>();
    const int32_t* owners = owner.const_data_ptr<int32_t>();
    const Buffer<double> deficits(own, 2 * (count + 1));
    const Buffer<int32_t> position(own, count), bin(own, rows);
    const Buffer<int> wrong(own, 1);
    const Buffer<RunningSums> running(own, count), scanned(own, count);
    const Buffer<Row> row(own, rows);
    // one allocation, so that one call clears both
    double *deficit = deficits.get(), *deficit_sum = deficit + count + 1;
    stream.clear(deficit, 2 * (count + 1) * sizeof(double));
    stream.clear(wrong.get(), sizeof(int));

    // one thread at least, which looks at the totals
    stream.start(find_wrong, std::max<int64_t>(rows, 1), 0, score, u, rows, total, wrong.get());
    stream.start(find_positions, count, 0, owners, count, position.get());
    stream.start(weigh_positives, rows, 0, loss.others, score, u, rows, threshold, count, bin.get(), deficit,
                 deficit_sum);
    stream.start(make_score_sums, count, 0, threshold, total, deficit, deficit_sum, count, running.get());
    if (count) stream.scan(own, running.get(), scanned.get(), count);
    stream.start(make_rows, rows, 0, loss, scanned.get(), position.get(), u, rows, count, row.get());
    stream.start(make_changes, count, 0, loss.merged, row.get(), threshold, owners, count, running.get());
    if (count) stream.scan(own, running.get(), scanned.get(), count);
    stream.start(write_slopes, count + 1, 0, scanned.get(), count, wrong.get(), out.slopes.mutable_data_ptr<double>());
    stream.start(write_positive_gradients, rows, 0, loss, row.get(), scanned.get(), threshold, bin.get(), score, u,
                 rows, wrong.get(), out.by_score.mutable_data_ptr<double>(), out.by_quality.mutable_data_ptr<double>());
    stream.start(write_loss, 1, 0, row.get(), rows, wrong.get(), out.loss.mutable_data_ptr<double>());
  }

  template <typename T, typename Index>
  static void gradient(const Tensors& bins, const Tensor& slopes, const Tensor& place, const Tensor& by_score,
                       const Tensors& results) {
    const Stream stream(slopes);
    const int64_t rows = place.numel();
    int64_t begin = 0;
    for (size_t l = 0; l < bins.size(); ++l) {
      const int64_t n = bins[l].numel();
      T* out = results[l].mutable_data_ptr<T>();
      stream.start(look_up_gradients<T, Index>, n, 0, static_cast<const Index*>(bins[l].const_data_ptr()), n,
                   slopes.const_data_ptr<T>(), out);
      stream.start(overwrite_positives<T>, rows, 0, place.const_data_ptr<int64_t>(), by_score.const_data_ptr<T>(),
                   rows, begin, n, out);
      begin += n;
    }
  }
};

}  // namespace
}  // namespace detsearch::ap

STABLE_TORCH_LIBRARY_IMPL(detsearch, CUDA, m) { detsearch::ap::implement<detsearch::ap::Cuda>(m); }
