// torch's functions for a GPU, of which there is none; an operator that is registered for CUDA is registered for the
// CPU, in detsearch_emulated.

#pragma once

#include <cuda_runtime.h>

#define aoti_torch_get_current_cuda_stream emulated_current_stream
#define aoti_torch_create_device_guard emulated_create_guard
#define aoti_torch_delete_device_guard emulated_delete_guard
#define torch_c10_cuda_check_msg emulated_check
#define torch_c10_cuda_free_error_msg emulated_free

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>

inline AOTITorchError emulated_current_stream(int32_t, void** stream) { return *stream = nullptr, 0; }
inline AOTITorchError emulated_create_guard(int32_t, DeviceGuardHandle* guard) { return *guard = nullptr, 0; }
inline AOTITorchError emulated_delete_guard(DeviceGuardHandle) { return 0; }
inline AOTITorchError emulated_check(int32_t, const char*, const char*, uint32_t, bool, char** message) {
  return *message = nullptr, 0;
}
inline void emulated_free(char*) {}

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(name, key, m) _STABLE_TORCH_LIBRARY_IMPL(detsearch_emulated, CPU, m, C10_UID)
