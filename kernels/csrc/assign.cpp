// HPS-Det's Algorithm 2 for a whole batch on the CPU, without a ground truth x prior matrix: candidates are found near
// each ground truth (runs.h), the k of lowest loss chosen (lowest.h), conflicts settled, orphans served (orphans.h).

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "lowest.h"

namespace detsearch {
namespace {

Place place_of(const Problem& problem, int64_t image, int64_t g) {
  return {image, problem.label[g], problem.truth[g]};
}

// What the ground truths have chosen: row g has taken[g] choices from g * widest on.
struct Chosen {
  int64_t widest;  // the most that one may choose, so that rows can be filled in parallel
  std::vector<Choice> choices;
  std::vector<int64_t> taken;
};

Chosen choose(const Problem& problem, const std::vector<int64_t>& image_of) {
  const int64_t rows = static_cast<int64_t>(image_of.size());
  const int64_t most_wanted = *std::max_element(problem.counts, problem.counts + problem.rows * problem.bins);
  const int64_t widest = std::min(most_wanted, problem.grid.priors);
  Chosen chosen{widest, std::vector<Choice>(rows * widest), std::vector<int64_t>(rows)};
  torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    Lowest lowest(problem);
    for (int64_t g = begin; g < end; ++g) {
      const Place place = place_of(problem, image_of[g], g);
      const auto& best = lowest.of(place);
      std::copy(best.begin(), best.end(), chosen.choices.begin() + g * widest);
      chosen.taken[g] = static_cast<int64_t>(best.size());
    }
  });
  return chosen;
}

// A prior that several rows of an image chose goes to the lowest loss, of equal ones to the lower row.
// matched holds slots of `choices` meanwhile, so that no second array of all priors is needed.
void settle(const Problem& problem, int64_t image, Chosen& chosen, int64_t begin, int64_t end, int64_t* matched,
            std::vector<int64_t>& kept) {
  const int64_t widest = chosen.widest;
  const auto loss = [&](int64_t slot) {
    Choice& choice = chosen.choices[slot];
    if (choice.loss == kUnknown) choice.loss = loss_at(problem, place_of(problem, image, slot / widest), choice.prior);
    return choice.loss;
  };
  for (int64_t g = begin; g < end; ++g) {
    for (int64_t slot = g * widest; slot < g * widest + chosen.taken[g]; ++slot) {
      int64_t& holder = matched[chosen.choices[slot].prior];
      if (holder >= 0 && !(loss(slot) < loss(holder))) continue;
      if (holder >= 0) --kept[holder / widest];
      holder = slot;
      ++kept[g];
    }
  }
  for (int64_t g = begin; g < end; ++g) {
    for (int64_t slot = g * widest; slot < g * widest + chosen.taken[g]; ++slot) {
      int64_t& holder = matched[chosen.choices[slot].prior];
      // written once: the owner's own slot stands there until it is turned into its row
      if (holder == slot) holder = -2 - g;
    }
  }
  for (int64_t g = begin; g < end; ++g) {
    for (int64_t slot = g * widest; slot < g * widest + chosen.taken[g]; ++slot) {
      int64_t& holder = matched[chosen.choices[slot].prior];
      if (holder < -1) holder = -2 - holder;
    }
  }
}

// All candidates of the few rows that take part in serving orphans.
class Wishes {
 public:
  Wishes(const Problem& problem, int64_t image) : problem_(problem), image_(image), lowest_(problem) {}

  const std::vector<Choice>& of(int64_t g) {
    const auto [place, fresh] = known_.try_emplace(g);
    if (fresh) place->second = lowest_.all(place_of(problem_, image_, g));
    return place->second;
  }

 private:
  const Problem& problem_;
  int64_t image_;
  Lowest lowest_;
  std::unordered_map<int64_t, std::vector<Choice>> known_;
};

void assign(const Problem& problem, int64_t* matched) {
  std::vector<int64_t> image_of;
  for (int64_t image = 0; image < problem.images; ++image) {
    image_of.insert(image_of.end(), problem.splits[image + 1] - problem.splits[image], image);
  }
  if (image_of.empty()) return;
  Chosen chosen = choose(problem, image_of);
  std::vector<int64_t> kept(image_of.size(), 0);
  torch::stable::parallel_for(0, problem.images, 1, [&](int64_t first, int64_t last) {
    for (int64_t image = first; image < last; ++image) {
      const int64_t begin = problem.splits[image], end = problem.splits[image + 1];
      int64_t* own = matched + image * problem.grid.priors;
      settle(problem, image, chosen, begin, end, own, kept);
      Wishes wishes(problem, image);
      serve(begin, end, chosen.taken, wishes, own, kept);
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
  problem.whole = logits[0].dim() == 3;
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
