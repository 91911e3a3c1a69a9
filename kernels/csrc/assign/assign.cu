// HPS-Det's Algorithm 2 for a whole batch on a GPU, in two kernels: that of choose_gpu.h, then that of settle_gpu.h.
// The host waits for nothing: what it would have to read first (labels, splits) is not checked here.

#include <torch/csrc/stable/library.h>

#include <vector>

#include "assign/settle_gpu.h"
#include "common/grid.h"

namespace detsearch::gpu {
namespace {

constexpr int64_t kUsualCapacity = 3072;   // candidates in a pool; more seldom occur, and six such blocks fit together
constexpr int64_t kMaxCapacity = 1 << 16;  // the list of a pool holds indices of 16 bits
constexpr int64_t kClearing = 512;         // blocks that write the background, at least

constexpr int64_t bytes_of_pool(int64_t capacity) { return capacity * int64_t(sizeof(uint64_t) + sizeof(uint16_t)); }

void fill_grid(const Grid& grid, const std::vector<Scores>& scores, AssignArguments& args) {
  STD_TORCH_CHECK(grid.count() <= kMaxLevels, "at most ", kMaxLevels, " levels on a GPU, got ", grid.count());
  STD_TORCH_CHECK(grid.priors < kMaxPriors, "at most ", kMaxPriors, " priors on a GPU, got ", grid.priors);
  args.grid.count = static_cast<int32_t>(grid.count());
  args.grid.shapes = static_cast<int32_t>(grid.levels.empty() ? 1 : grid.levels[0].shapes);
  args.grid.priors = static_cast<int32_t>(grid.priors);
  args.grid.points = grid.points;
  std::copy(grid.levels.begin(), grid.levels.end(), args.grid.levels);
  std::copy(scores.begin(), scores.end(), args.scores);
}

void fill_counts(const Tensor& counts, const Tensor& edges, AssignArguments& args) {
  const int64_t number = counts.numel();
  STD_TORCH_CHECK(number >= 1 && number <= kMaxCounts, "1 to ", kMaxCounts, " counts on a GPU, got ", number);
  const int64_t* count = data<int64_t>(counts);
  const int64_t low = *std::min_element(count, count + number);
  STD_TORCH_CHECK(low >= 1, "every count must be at least 1, got ", low);
  std::transform(count, count + number, args.counts,
                 [&](int64_t x) { return static_cast<int32_t>(std::min<int64_t>(x, args.grid.priors)); });
  std::copy_n(data<float>(edges), edges.numel(), args.edges);
  args.count_rows = static_cast<int32_t>(counts.size(0));
  args.bins = static_cast<int32_t>(counts.size(1));
  args.max_count = *std::max_element(args.counts, args.counts + number);
}

// Makes pools with room for the largest count twice, where the GPU has it: a pool that is full keeps `count` of them
// and needs room to go on.
void choose_capacity(const Stream& stream, AssignArguments& args) {
  const int64_t most =
      std::min(kMaxCapacity, (stream.max_shared_bytes() - 8192) /
                                 bytes_of_pool(1));  // 8192: for the other shared variables of the kernel
  STD_TORCH_CHECK(args.max_count + kThreads <= most, "counts may be up to ", most - kThreads, " on this GPU, got ",
                  args.max_count);
  args.capacity = static_cast<int32_t>(std::min(std::max<int64_t>(2 * args.max_count, kUsualCapacity), most) / 4 * 4);
  stream.allow_shared(choose, bytes_of_pool(args.capacity));
}

// Memory that the kernels write, by row, in two allocations instead of nine.
class Work {
 public:
  Work(const Tensor& like, AssignArguments& args)
      : keys_(like, args.rows * (int64_t(args.max_count) + 1)), numbers_(like, args.rows * int64_t(kNumbers)) {
    args.choices = keys_.get();
    args.request = args.choices + args.rows * int64_t(args.max_count);
    int32_t** const parts[] = {&args.num_chosen, &args.num_owned, &args.asker, &args.owned,
                               &args.queue,      &args.sorted,    &args.state};
    static_assert(std::size(parts) == kNumbers);
    for (int64_t i = 0; i < kNumbers; ++i) *parts[i] = numbers_.get() + i * args.rows;
  }

 private:
  static constexpr int kNumbers = 7;
  Buffer<uint64_t> keys_;
  Buffer<int32_t> numbers_;
};

Tensor assign_topk(const std::vector<Tensor> logits, const Tensor& boxes, const Tensor& truth, const Tensor& labels,
                   const Tensor& splits, const Tensor& sizes, const Tensor& cell, const Tensor& strides,
                   const Tensor& ranges, const Tensor& counts, const Tensor& edges, int64_t classes, double alpha,
                   double min_iou) {
  const Stream stream(boxes);
  const Tensor there = torch::stable::to(cell, boxes.device(), true);  // true: the host does not wait for the copy
  const Grid grid = read_grid(sizes, there, strides, ranges, boxes.size(1));
  AssignArguments args{};
  fill_grid(grid, read_scores(logits, grid, classes), args);
  fill_counts(counts, edges, args);
  choose_capacity(stream, args);
  const int64_t rows = labels.size(0), images = splits.size(0) - 1;
  STD_TORCH_CHECK(rows * args.max_count < int64_t(1) << 31, "too many ground truths for a GPU: ", rows);
  args.rows = static_cast<int32_t>(rows);
  args.images = static_cast<int32_t>(images);
  args.classes = static_cast<int32_t>(classes);
  args.alpha = static_cast<float>(alpha);
  args.min_iou = static_cast<float>(min_iou);
  args.joined_levels = logits[0].dim() == 3;
  args.boxes = data<Box>(boxes);
  args.truth = data<Box>(truth);
  args.label = data<int64_t>(labels);
  args.splits = data<int64_t>(splits);
  Tensor matched = torch::stable::new_empty(labels, {images, grid.priors});
  if (matched.numel() == 0) return matched;
  args.matched = static_cast<int64_t*>(matched.mutable_data_ptr());
  const Work work(boxes, args);
  stream.launch(choose, std::max(rows, kClearing), kThreads, bytes_of_pool(args.capacity), args);
  if (rows > 0) stream.launch(settle, images, kSettleThreads, 0, args);
  return matched;
}

}  // namespace
}  // namespace detsearch::gpu

STABLE_TORCH_LIBRARY_IMPL(detsearch, CUDA, m) { m.impl("assign_topk", TORCH_BOX(&detsearch::gpu::assign_topk)); }
