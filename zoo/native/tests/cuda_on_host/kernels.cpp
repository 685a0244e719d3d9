// The CUDA kernels as a library for the CPU, with what zoo/native/cuda.py asks of the driver, and the torch adapter of a
// libtorch with CUDA: tests/test_cuda.py compiles it and calls it in the place of those.
#include <chrono>
#include <cstdio>

#include "../../src/cuda/attention.cu"
#include "../../src/cuda/rows.cu"

extern "C" {

ZOO_API int cuInit(unsigned) { return 0; }
ZOO_API int cuDeviceGet(int* device, int ordinal) { return *device = 0, ordinal; }
ZOO_API int cuDevicePrimaryCtxRetain(void** context, int) { return *context = nullptr, 0; }
ZOO_API int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
ZOO_API int cuCtxSetCurrent(void*) { return 0; }
ZOO_API int cuCtxSynchronize() { return 0; }
ZOO_API int cuDeviceGetName(char* name, int size, int) { return snprintf(name, (size_t)size, "CPU"), 0; }
ZOO_API int cuGetErrorString(int, const char** text) { return *text = "as asked for by the test", 0; }
ZOO_API int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    if (bytes > (size_t)1 << 40) return 2;
    *address = (uint64_t) ::operator new(bytes, std::align_val_t(256));
    memset((void*)*address, 0xff, bytes);
    return 0;
}
ZOO_API int cuMemFree_v2(uint64_t address) { return ::operator delete((void*)address, std::align_val_t(256)), 0; }
ZOO_API int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) { return memcpy((void*)to, from, bytes), 0; }
ZOO_API int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) { return memcpy(to, (void*)from, bytes), 0; }

ZOO_API int aoti_torch_get_current_cuda_stream(int32_t, void** stream) { return *stream = nullptr, 0; }

using Clock = std::chrono::steady_clock;
ZOO_API int cuEventCreate(void** event, unsigned) { return *event = new Clock::time_point, 0; }
ZOO_API int cuEventDestroy_v2(void* event) { return delete (Clock::time_point*)event, 0; }
ZOO_API int cuEventRecord(void* event, void*) { return *(Clock::time_point*)event = Clock::now(), 0; }
ZOO_API int cuEventSynchronize(void*) { return 0; }
ZOO_API int cuEventElapsedTime(float* milliseconds, void* a, void* b) {
    *milliseconds = std::chrono::duration<float, std::milli>(*(Clock::time_point*)b - *(Clock::time_point*)a).count();
    return 0;
}

// The order in which the threads of a block run: 0 forward, 1 backward, 2 shuffled.
ZOO_API void zoo_host_order(int order) { on_host::order = (on_host::Order)order; }
}
