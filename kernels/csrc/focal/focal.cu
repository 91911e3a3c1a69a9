// Focal loss of all logits and its gradient on a GPU: one launch a level, and one that adds up the blocks' sums.

#include <algorithm>

#include "common/gpu.h"
#include "focal/focal_gpu.h"
#include "focal/focal_operators.h"

namespace detsearch::focal {
namespace {

constexpr int64_t kMaxBlocks = 2048;  // of a level: threads then take several logits each

struct Cuda {
  // Reading rows and labels would stall the host; the kernel gives NaN where they are out of range.
  static void check(const Tensor&, const Tensor&, int64_t) {}

  template <typename T>
  static LevelLogits<T> level_logits(const Call& call, size_t i) {
    const LogitLayout& layout = call.layouts[i];
    STD_TORCH_CHECK(layout.per_image() < int64_t(1) << 32, "at most 2^32 logits an image and level, got ",
                    layout.per_image());
    const int64_t most = std::max<int64_t>(1, kMaxBlocks / std::max<int64_t>(1, layout.images));
    const int64_t blocks = std::clamp<int64_t>((layout.per_image() + kThreads - 1) / kThreads, 1, most);
    return {layout,
            call.logits[i].const_data_ptr<T>(),
            call.matched.const_data_ptr<int64_t>(),
            call.labels.const_data_ptr<int64_t>(),
            call.priors(),
            call.labels.numel(),
            blocks,
            static_cast<T>(call.alpha),
            static_cast<T>(call.gamma)};
  }

  template <typename T, bool gamma_is_2>
  static void sum(const Call& call, Tensor& result) {
    const gpu::Stream stream(call.matched);
    std::vector<LevelLogits<T>> levels;
    int64_t count = 0;
    for (size_t i = 0; i < call.layouts.size(); ++i) {
      levels.push_back(level_logits<T>(call, i));
      count += levels[i].layout.images * levels[i].blocks;
    }
    const gpu::Buffer<double> parts(call.matched, count);
    double* next = parts.get();
    for (const LevelLogits<T>& level : levels) {
      const int64_t blocks = level.layout.images * level.blocks;
      // an empty level has nothing to add, and a launch of 0 blocks is an error in CUDA
      if (blocks > 0) stream.launch(sum_level<T, gamma_is_2>, blocks, kThreads, 0, level, next);
      next += blocks;
    }
    stream.launch(sum_parts<T>, 1, kThreads, 0, parts.get(), count, result.mutable_data_ptr<T>());
  }

  template <typename T, bool gamma_is_2>
  static void gradient(const Call& call, const Tensor& factor, Tensors& results) {
    const gpu::Stream stream(call.matched);
    for (size_t i = 0; i < call.layouts.size(); ++i) {
      const LevelLogits<T> level = level_logits<T>(call, i);
      const int64_t blocks = level.layout.images * level.blocks;
      if (blocks > 0)
        stream.launch(fill_gradient<T, gamma_is_2>, blocks, kThreads, 0, level, factor.const_data_ptr<T>(),
                      results[i].mutable_data_ptr<T>());
    }
  }
};

}  // namespace
}  // namespace detsearch::focal

STABLE_TORCH_LIBRARY_IMPL(detsearch, CUDA, m) { detsearch::focal::implement<detsearch::focal::Cuda>(m); }
