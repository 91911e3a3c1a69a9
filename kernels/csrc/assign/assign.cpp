// HPS-Det's Algorithm 2 for a whole batch on the CPU, without a ground truth x prior matrix. Its steps: find the
// candidates near each ground truth (runs.h, blocks.h), choose the k of lowest loss (top_k.h), settle conflicts (here),
// give a prior to ground truths that lost all of theirs (orphans.h).

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "assign/top_k.h"

namespace detsearch {
namespace {

GroundTruth ground_truth_at(const Problem& problem, int64_t image, int64_t g) {
  return {image, problem.label[g], problem.truth[g]};
}

// What the ground truths have chosen: row g has num_chosen[g] choices from g * max_count on.
struct Chosen {
  int64_t max_count;  // rows have a fixed length, the most that one may choose, so that threads fill them side by side
  std::vector<PriorLoss> choices;
  std::vector<int64_t> num_chosen;
};

Chosen choose(const Problem& problem, const std::vector<int64_t>& image_of) {
  const int64_t rows = static_cast<int64_t>(image_of.size());
  const int64_t largest_count = *std::max_element(problem.counts, problem.counts + problem.rows * problem.bins);
  const int64_t max_count = std::min(largest_count, problem.grid.priors);
  Chosen chosen{max_count, std::vector<PriorLoss>(rows * max_count), std::vector<int64_t>(rows)};
  torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    TopK top_k(problem);
    for (int64_t g = begin; g < end; ++g) {
      const GroundTruth gt = ground_truth_at(problem, image_of[g], g);
      const auto& best = top_k.choose(gt);
      std::copy(best.begin(), best.end(), chosen.choices.begin() + g * max_count);
      chosen.num_chosen[g] = static_cast<int64_t>(best.size());
    }
  });
  return chosen;
}

// A prior that several rows of an image chose goes to the lowest loss, of equal ones to the lower row. Meanwhile
// matched holds indices into `choices` instead of rows, so that no second array of all priors is needed.
void settle(const Problem& problem, int64_t image, Chosen& chosen, int64_t begin, int64_t end, int64_t* matched,
            std::vector<int64_t>& num_owned) {
  const int64_t max_count = chosen.max_count;
  const auto loss = [&](int64_t index) {
    PriorLoss& choice = chosen.choices[index];
    if (choice.loss == kUnknown)
      choice.loss = loss_at(problem, ground_truth_at(problem, image, index / max_count), choice.prior);
    return choice.loss;
  };
  for (int64_t g = begin; g < end; ++g) {
    for (int64_t index = g * max_count; index < g * max_count + chosen.num_chosen[g]; ++index) {
      int64_t& holder = matched[chosen.choices[index].prior];
      // rows ascend, so at an equal loss the lower row keeps the prior
      if (holder >= 0 && !(loss(index) < loss(holder))) continue;
      if (holder >= 0) --num_owned[holder / max_count];
      holder = index;
      ++num_owned[g];
    }
  }
  for (int64_t g = begin; g < end; ++g) {
    for (int64_t index = g * max_count; index < g * max_count + chosen.num_chosen[g]; ++index) {
      int64_t& holder = matched[chosen.choices[index].prior];
      // first to -2 - row, which no index can be: a plain row could be taken for another choice's index
      if (holder == index) holder = -2 - g;
    }
  }
  for (int64_t g = begin; g < end; ++g) {
    for (int64_t index = g * max_count; index < g * max_count + chosen.num_chosen[g]; ++index) {
      int64_t& holder = matched[chosen.choices[index].prior];
      if (holder < -1) holder = -2 - holder;
    }
  }
}

// All candidates of the few rows that orphans ask; each row's are computed when it is first asked.
class CandidatesByLoss {
 public:
  CandidatesByLoss(const Problem& problem, int64_t image) : problem_(problem), image_(image), top_k_(problem) {}

  const std::vector<PriorLoss>& of(int64_t g) {
    const auto [entry, inserted] = known_.try_emplace(g);
    if (inserted) entry->second = top_k_.sorted_by_loss(ground_truth_at(problem_, image_, g));
    return entry->second;
  }

 private:
  const Problem& problem_;
  int64_t image_;
  TopK top_k_;
  std::unordered_map<int64_t, std::vector<PriorLoss>> known_;
};

void assign(const Problem& problem, int64_t* matched) {
  std::vector<int64_t> image_of;
  for (int64_t image = 0; image < problem.images; ++image) {
    image_of.insert(image_of.end(), problem.splits[image + 1] - problem.splits[image], image);
  }
  if (image_of.empty()) return;
  // over ground truths, not images: one crowded image would keep one thread busy and the others waiting
  Chosen chosen = choose(problem, image_of);
  std::vector<int64_t> num_owned(image_of.size(), 0);
  torch::stable::parallel_for(0, problem.images, 1, [&](int64_t first, int64_t last) {
    for (int64_t image = first; image < last; ++image) {
      const int64_t begin = problem.splits[image], end = problem.splits[image + 1];
      int64_t* own = matched + image * problem.grid.priors;
      settle(problem, image, chosen, begin, end, own, num_owned);
      CandidatesByLoss by_loss(problem, image);
      serve_orphans(begin, end, chosen.num_chosen, by_loss, own, num_owned);
    }
  });
}

Tensor solve(const Problem& problem, const Tensor& labels) {
  Tensor matched = torch::stable::new_empty(labels, {problem.images, problem.grid.priors});
  int64_t* out = static_cast<int64_t*>(matched.mutable_data_ptr());
  std::fill(out, out + problem.images * problem.grid.priors, int64_t{-1});
  assign(problem, out);
  return matched;
}

Problem read_problem(Grid grid, const std::vector<Tensor>& logits, const Tensor& boxes, const Tensor& truth,
                     const Tensor& labels, const Tensor& splits, const Tensor& counts, const Tensor& edges,
                     int64_t classes, double alpha, double min_iou) {
  check_truth(splits, labels, classes);
  Problem problem{};
  problem.grid = std::move(grid);
  problem.scores = read_scores(logits, problem.grid, classes);
  problem.joined_levels = logits[0].dim() == 3;
  problem.images = splits.size(0) - 1;
  problem.classes = classes;
  problem.boxes = data<Box>(boxes);
  problem.truth = data<Box>(truth);
  problem.label = data<int64_t>(labels);
  problem.splits = data<int64_t>(splits);
  problem.counts = data<int64_t>(counts);
  problem.edges = data<float>(edges);
  problem.rows = counts.size(0);
  problem.bins = counts.size(1);
  for (int64_t i = 0; i < counts.numel(); ++i) {
    STD_TORCH_CHECK(problem.counts[i] >= 1, "every count must be at least 1, got ", problem.counts[i]);
  }
  STD_TORCH_CHECK(problem.grid.priors <= std::numeric_limits<int32_t>::max(), "at most 2^31 - 1 priors, got ",
                  problem.grid.priors);
  problem.alpha = static_cast<float>(alpha);
  problem.min_iou = static_cast<float>(min_iou);
  return problem;
}

Tensor assign_topk(const std::vector<Tensor> logits, const Tensor& boxes, const Tensor& truth, const Tensor& labels,
                   const Tensor& splits, const Tensor& sizes, const Tensor& cell, const Tensor& strides,
                   const Tensor& ranges, const Tensor& counts, const Tensor& edges, int64_t classes, double alpha,
                   double min_iou) {
  const Problem problem = read_problem(read_grid(sizes, cell, strides, ranges, boxes.size(1)), logits, boxes, truth,
                                       labels, splits, counts, edges, classes, alpha, min_iou);
  return solve(problem, labels);
}

// priors: (A, 4) boxes, or (A, 2) points where ranges has rows. sizes (L, 3): cells down and across, priors of a cell.
Tensor assign_topk_scattered(const std::vector<Tensor> logits, const Tensor& boxes, const Tensor& truth,
                             const Tensor& labels, const Tensor& splits, const Tensor& sizes, const Tensor& priors,
                             const Tensor& ranges, const Tensor& counts, const Tensor& edges, int64_t classes,
                             double alpha, double min_iou) {
  Problem problem = read_problem(read_levels(sizes, ranges, boxes.size(1)), logits, boxes, truth, labels, splits,
                                 counts, edges, classes, alpha, min_iou);
  const Blocks blocks(problem.grid, data<float>(priors));
  problem.blocks = &blocks;
  return solve(problem, labels);
}

}  // namespace
}  // namespace detsearch

STABLE_TORCH_LIBRARY_FRAGMENT(detsearch, m) {
  m.def(
      "assign_topk(Tensor[] logits, Tensor boxes, Tensor truth, Tensor labels, Tensor splits, Tensor sizes, "
      "Tensor cell, Tensor strides, Tensor ranges, Tensor counts, Tensor edges, int classes, float alpha, "
      "float min_iou) -> Tensor");
  m.def(
      "assign_topk_scattered(Tensor[] logits, Tensor boxes, Tensor truth, Tensor labels, Tensor splits, Tensor sizes, "
      "Tensor priors, Tensor ranges, Tensor counts, Tensor edges, int classes, float alpha, float min_iou) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(detsearch, CPU, m) {
  m.impl("assign_topk", TORCH_BOX(&detsearch::assign_topk));
  m.impl("assign_topk_scattered", TORCH_BOX(&detsearch::assign_topk_scattered));
}
