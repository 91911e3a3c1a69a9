// Focal loss of all logits and its gradient on the CPU.
//
// Nearly every prior is background. So each logit counts as a negative first, in the order of memory whatever that is,
// and the few priors that are matched or ignored are corrected afterwards.

#include <algorithm>

#include "common/large_pages.h"
#include "focal/focal_operators.h"

namespace detsearch::focal {
namespace {

constexpr int64_t kElements = 8192;    // logits of a task: they stay in the first-level cache
constexpr int64_t kTasksOfThread = 8;  // fewer are not worth starting a thread
constexpr int kLanes = 16;             // partial sums on every machine: the loss must not depend on its vectors

// Some priors of an image, and as many logits as they have. Where classes lie last these are the priors' own logits;
// else they are others, which does not matter, because all tasks together cover all logits.
struct Task {
  const LogitLayout* layout;
  size_t level;
  int64_t image, begin, end;  // begin..end - 1: priors of the level
};

std::vector<Task> tasks_of(const Call& call) {
  std::vector<Task> tasks;
  for (size_t level = 0; level < call.layouts.size(); ++level) {
    const LogitLayout& layout = call.layouts[level];
    const int64_t step = std::max<int64_t>(1, kElements / std::max<int64_t>(1, layout.classes));
    for (int64_t image = 0; image < layout.images; ++image) {
      for (int64_t begin = 0; begin < layout.priors(); begin += step)
        tasks.push_back({&layout, level, image, begin, std::min(begin + step, layout.priors())});
    }
  }
  return tasks;
}

template <typename Work>
void for_each(const std::vector<Task>& tasks, const Work& work) {
  torch::stable::parallel_for(0, static_cast<int64_t>(tasks.size()), kTasksOfThread, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i, tasks[i]);
  });
}

// Calls visit(offset, row) for the priors of a task that are not background. offset: of the first class in the image;
// row: of the ground truths, or kIgnored.
template <typename Visit>
void visit_exceptions(const Call& call, const Task& task, const Visit& visit) {
  const int64_t* matched = call.matched.const_data_ptr<int64_t>() + task.image * call.priors() + task.layout->first;
  for (int64_t prior = task.begin; prior < task.end; ++prior) {
    if (matched[prior] != kBackground) visit(task.layout->offset(prior), matched[prior]);
  }
}

// The unweighted loss of targets 0, summed in an order that depends on `count` alone.
template <typename T, bool gamma_is_2>
double sum_of_negatives(const T* logits, int64_t count, T gamma) {
  T lane[kLanes] = {};
  const int64_t full = count / kLanes * kLanes;
  for (int64_t start = 0; start < full; start += kLanes) {
    for (int i = 0; i < kLanes; ++i) lane[i] += negative_focal<gamma_is_2>(logits[start + i], gamma).value;
  }
  for (int64_t i = full; i < count; ++i) lane[i - full] += negative_focal<gamma_is_2>(logits[i], gamma).value;
  // float64: float32 would lose the corrections of single priors in a sum of thousands
  double sum = 0;
  for (const T part : lane) sum += static_cast<double>(part);
  return sum;
}

// What a task adds to the loss.
template <typename T, bool gamma_is_2>
double sum_of_task(const Call& call, const Task& task) {
  const LogitLayout& layout = *task.layout;
  const T* image = call.logits[task.level].const_data_ptr<T>() + task.image * layout.per_image();
  const int64_t* label = call.labels.const_data_ptr<int64_t>();
  const T gamma = static_cast<T>(call.gamma);
  double negative = sum_of_negatives<T, gamma_is_2>(image + task.begin * layout.classes,
                                                    (task.end - task.begin) * layout.classes, gamma);
  double positive = 0;
  visit_exceptions(call, task, [&](int64_t offset, int64_t row) {
    const T* logits = image + offset;
    if (row == kIgnored) {
      for (int64_t c = 0; c < layout.classes; ++c)
        negative -= negative_focal<gamma_is_2>(logits[c * layout.class_stride()], gamma).value;
    } else {
      const T own = logits[label[row] * layout.class_stride()];
      negative -= negative_focal<gamma_is_2>(own, gamma).value;
      positive += negative_focal<gamma_is_2>(-own, gamma).value;
    }
  });
  return (1 - call.alpha) * negative + call.alpha * positive;
}

struct Cpu {
  static void check(const Tensor& matched, const Tensor& labels, int64_t classes) {
    const int64_t rows = labels.numel();
    const int64_t *row = matched.const_data_ptr<int64_t>(), *label = labels.const_data_ptr<int64_t>();
    int64_t lowest = kBackground, highest = kBackground;
    for (int64_t i = 0; i < matched.numel(); ++i) {
      lowest = std::min(lowest, row[i]);
      highest = std::max(highest, row[i]);
    }
    STD_TORCH_CHECK(lowest >= kIgnored && highest < rows, "matched must be -2, -1 or below the ", rows,
                    " ground truths, got ", lowest < kIgnored ? lowest : highest);
    for (int64_t i = 0; i < rows; ++i) {
      STD_TORCH_CHECK(label[i] >= 0 && label[i] < classes, "labels must be below the ", classes, " classes, got ",
                      label[i]);
    }
  }

  template <typename T, bool gamma_is_2>
  static void sum(const Call& call, Tensor& result) {
    const std::vector<Task> tasks = tasks_of(call);
    std::vector<double> parts(tasks.size());
    for_each(tasks, [&](int64_t i, const Task& task) { parts[i] = sum_of_task<T, gamma_is_2>(call, task); });
    double total = 0;
    for (const double part : parts) total += part;  // in order: two threads give what one gives
    *result.mutable_data_ptr<T>() = static_cast<T>(total);
  }

  template <typename T, bool gamma_is_2>
  static void gradient(const Call& call, const Tensor& factor, Tensors& results) {
    for (const Tensor& result : results) use_large_pages(result);  // before the first store to them
    const std::vector<Task> tasks = tasks_of(call);
    const T gamma = static_cast<T>(call.gamma), scale = *factor.const_data_ptr<T>();
    const T of_negative = static_cast<T>(1 - call.alpha) * scale, of_positive = static_cast<T>(-call.alpha) * scale;
    for_each(tasks, [&](int64_t, const Task& task) {
      const int64_t first = task.image * task.layout->per_image() + task.begin * task.layout->classes;
      const int64_t count = (task.end - task.begin) * task.layout->classes;
      const T* logits = call.logits[task.level].const_data_ptr<T>() + first;
      T* out = results[task.level].mutable_data_ptr<T>() + first;  // lies in memory as the logits do
      for (int64_t i = 0; i < count; ++i) out[i] = of_negative * negative_focal<gamma_is_2>(logits[i], gamma).slope;
    });
    // after all tasks: where classes do not lie last, another task writes the logits of this one's priors
    const int64_t* label = call.labels.const_data_ptr<int64_t>();
    for_each(tasks, [&](int64_t, const Task& task) {
      const int64_t image = task.image * task.layout->per_image(), step = task.layout->class_stride();
      const T* logits = call.logits[task.level].const_data_ptr<T>() + image;
      T* out = results[task.level].mutable_data_ptr<T>() + image;
      visit_exceptions(call, task, [&](int64_t offset, int64_t row) {
        if (row == kIgnored) {
          for (int64_t c = 0; c < task.layout->classes; ++c) out[offset + c * step] = T(0);
        } else {
          const int64_t own = offset + label[row] * step;
          out[own] = of_positive * negative_focal<gamma_is_2>(-logits[own], gamma).slope;
        }
      });
    });
  }
};

}  // namespace
}  // namespace detsearch::focal

STABLE_TORCH_LIBRARY_FRAGMENT(detsearch, m) {
  m.def("focal_sum(Tensor[] logits, Tensor matched, Tensor labels, float alpha, float gamma) -> Tensor");
  m.def(
      "focal_gradient(Tensor factor, Tensor[] logits, Tensor matched, Tensor labels, float alpha, float gamma) -> "
      "Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(detsearch, CPU, m) { detsearch::focal::implement<detsearch::focal::Cpu>(m); }
