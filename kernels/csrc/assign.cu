// HPS-Det's Algorithm 2 for a whole batch on a GPU, in two kernels: assign_gpu.h chooses, assign_finish_gpu.h settles.
// The host waits for nothing: what it would have to read first (labels, splits) is not checked here.

#include <torch/csrc/stable/library.h>

#include <vector>

#include "assign_finish_gpu.h"
#include "grid.h"

namespace detsearch::gpu {
namespace {

constexpr int64_t kUsualCapacity = 3072;  // candidates in a pool; more seldom occur, and six such blocks fit together
constexpr int64_t kMostCapacity = 1 << 16;  // a place in a pool is a uint16_t
constexpr int64_t kClearing = 512;           // blocks that write the background, at least

constexpr int64_t bytes_of_pool(int64_t capacity) { return capacity * int64_t(sizeof(uint64_t) + sizeof(uint16_t)); }

void fill_tiles(const Grid& grid, const std::vector<Scores>& scores, Task& task) {
  STD_TORCH_CHECK(grid.count() <= kMostLevels, "at most ", kMostLevels, " levels on a GPU, got ", grid.count());
  STD_TORCH_CHECK(grid.priors < kMostPriors, "at most ", kMostPriors, " priors on a GPU, got ", grid.priors);
  task.tiles.count = static_cast<int32_t>(grid.count());
  task.tiles.shapes = static_cast<int32_t>(grid.levels.empty() ? 1 : grid.levels[0].shapes);
  task.tiles.priors = static_cast<int32_t>(grid.priors);
  task.tiles.points = grid.points;
  std::copy(grid.levels.begin(), grid.levels.end(), task.tiles.levels);
  std::copy(scores.begin(), scores.end(), task.scores);
}

void fill_counts(const Tensor& counts, const Tensor& edges, Task& task) {
  const int64_t number = counts.numel();
  STD_TORCH_CHECK(number >= 1 && number <= kMostCounts, "1 to ", kMostCounts, " counts on a GPU, got ", number);
  const int64_t* count = data<int64_t>(counts);
  const int64_t low = *std::min_element(count, count + number);
  STD_TORCH_CHECK(low >= 1, "every count must be at least 1, got ", low);
  std::transform(count, count + number, task.counts,
                 [&](int64_t x) { return static_cast<int32_t>(std::min<int64_t>(x, task.tiles.priors)); });
  std::copy_n(data<float>(edges), edges.numel(), task.edges);
  task.count_rows = static_cast<int32_t>(counts.size(0));
  task.bins = static_cast<int32_t>(counts.size(1));
  task.widest = *std::max_element(task.counts, task.counts + number);
}

// Room for the largest count twice, where the GPU has it.
void choose_capacity(const Stream& stream, Task& task) {
  const int64_t most = std::min(kMostCapacity, (stream.most_shared() - 8192) / bytes_of_pool(1));  // 8192: the rest
  STD_TORCH_CHECK(task.widest + kThreads <= most, "counts may be up to ", most - kThreads, " on this GPU, got ",
                  task.widest);
  task.capacity = static_cast<int32_t>(std::min(std::max<int64_t>(2 * task.widest, kUsualCapacity), most) / 4 * 4);
  stream.fits(choose, bytes_of_pool(task.capacity));
}

// Memory that the kernels write by row.
class Work {
 public:
  Work(const Tensor& like, Task& task)
      : keys_(like, task.rows * (int64_t(task.widest) + 1)), numbers_(like, task.rows * int64_t(kNumbers)) {
    task.choices = keys_.get();
    task.wish = task.choices + task.rows * int64_t(task.widest);
    int32_t** const parts[] = {&task.taken, &task.kept,   &task.asker, &task.owned,
                               &task.queue, &task.sorted, &task.state};
    static_assert(std::size(parts) == kNumbers);
    for (int64_t i = 0; i < kNumbers; ++i) *parts[i] = numbers_.get() + i * task.rows;
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
  const Tensor there = torch::stable::to(cell, boxes.device(), true);  // no waiting
  const Grid grid = read_grid(sizes, there, strides, ranges, boxes.size(1));
  Task task{};
  fill_tiles(grid, read_scores(logits, grid, classes), task);
  fill_counts(counts, edges, task);
  choose_capacity(stream, task);
  const int64_t rows = labels.size(0), images = splits.size(0) - 1;
  STD_TORCH_CHECK(rows * task.widest < int64_t(1) << 31, "too many ground truths for a GPU: ", rows);
  task.rows = static_cast<int32_t>(rows);
  task.images = static_cast<int32_t>(images);
  task.classes = static_cast<int32_t>(classes);
  task.alpha = static_cast<float>(alpha);
  task.min_iou = static_cast<float>(min_iou);
  task.whole = logits[0].dim() == 3;
  task.boxes = data<Box>(boxes);
  task.truth = data<Box>(truth);
  task.label = data<int64_t>(labels);
  task.splits = data<int64_t>(splits);
  Tensor matched = torch::stable::new_empty(labels, {images, grid.priors});
  if (matched.numel() == 0) return matched;
  task.matched = static_cast<int64_t*>(matched.mutable_data_ptr());
  const Work work(boxes, task);
  stream.launch(choose, std::max(rows, kClearing), kThreads, bytes_of_pool(task.capacity), task);
  if (rows > 0) stream.launch(finish, images, kFinishThreads, 0, task);
  return matched;
}

}  // namespace
}  // namespace detsearch::gpu

STABLE_TORCH_LIBRARY_IMPL(detsearch, CUDA, m) { m.impl("assign_topk", TORCH_BOX(&detsearch::gpu::assign_topk)); }
