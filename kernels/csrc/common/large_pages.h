// Memory for large results on the CPU.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace detsearch {

// A result of megabytes is memory the system has yet to provide, and touching that for the first time takes several
// times as long as the arithmetic. In large pages, where the system grants them, it takes little.
inline void use_large_pages([[maybe_unused]] const torch::stable::Tensor& result) {
#if defined(__linux__)
  constexpr uintptr_t PAGE = 2 << 20;
  const auto start = reinterpret_cast<uintptr_t>(result.data_ptr());
  const auto end = start + result.numel() * result.element_size();
  // only pages that lie inside: those at the ends hold other memory too
  const auto first = (start + PAGE - 1) / PAGE * PAGE;
  // a hint: where the system refuses it, nothing is lost but time
  if (first + PAGE <= end) madvise(reinterpret_cast<void*>(first), (end - first) / PAGE * PAGE, MADV_HUGEPAGE);
#endif
}

}  // namespace detsearch
