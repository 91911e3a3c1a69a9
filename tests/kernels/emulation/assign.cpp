// assign.cu on a CPU, as the operator detsearch_emulated::assign_topk of tensors on the CPU.

#include <cuda_runtime.h>

// torch's functions for a GPU, of which there is none
#define aoti_torch_get_current_cuda_stream emulated_current_stream
#define aoti_torch_create_device_guard emulated_create_guard
#define aoti_torch_delete_device_guard emulated_delete_guard

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>

AOTITorchError emulated_current_stream(int32_t, void** stream) { return *stream = nullptr, 0; }
AOTITorchError emulated_create_guard(int32_t, DeviceGuardHandle* guard) { return *guard = nullptr, 0; }
AOTITorchError emulated_delete_guard(DeviceGuardHandle) { return 0; }

#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(call) (void)(call)
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(name, key, m) _STABLE_TORCH_LIBRARY_IMPL(detsearch_emulated, CPU, m, C10_UID)

#include "../../../kernels/csrc/assign.cu"

namespace detsearch::gpu {
thread_local uint64_t shared_memory[1 << 16];
}

STABLE_TORCH_LIBRARY_FRAGMENT(detsearch_emulated, m) {
  m.def(
      "assign_topk(Tensor[] logits, Tensor boxes, Tensor truth, Tensor labels, Tensor splits, Tensor sizes, Tensor cell, "
      "Tensor strides, Tensor ranges, Tensor counts, Tensor edges, int classes, float alpha, float min_iou) -> Tensor");
}
