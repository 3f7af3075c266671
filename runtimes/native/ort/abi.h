// The slice of ONNX Runtime's C interface that a library of custom operators needs.
//
// The interface is a table of functions that only ever grows, so an entry keeps its index for good
// (onnxruntime_c_api.h: "Please DO NOT modify the order"). pip's onnxruntime ships no headers; a
// test of this project holds every line here to the real one.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtSessionOptions;
struct OrtShapeInferContext;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

namespace tokexport::abi {

// The version of the interface that is asked for, and of the layout of CustomOp below.
inline constexpr uint32_t kVersion = 17;
// The oldest version, which every runtime has: enough to make a status of.
inline constexpr uint32_t kOldestVersion = 1;

inline constexpr int kFail = 1;             // OrtErrorCode
inline constexpr int kFloat = 1;            // ONNXTensorElementDataType
inline constexpr int kInt8 = 3;             // ONNXTensorElementDataType
inline constexpr int kInt64 = 7;            // ONNXTensorElementDataType
inline constexpr int kRequired = 0;         // OrtCustomOpInputOutputCharacteristic

// The table: OrtApi.
struct Api {
  void* entries[275];
};

template <size_t Index, typename Signature>
struct Entry {
  static constexpr size_t kIndex = Index;
  using Pointer = Signature*;

  static Pointer of(const Api* api) { return reinterpret_cast<Pointer>(api->entries[Index]); }
};

using CreateStatus = Entry<0, OrtStatus*(int, const char*)>;
using GetErrorMessage = Entry<2, const char*(const OrtStatus*)>;
using CreateCustomOpDomain = Entry<26, OrtStatus*(const char*, OrtCustomOpDomain**)>;
using AddCustomOpDomain = Entry<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)>;
using GetTensorMutableData = Entry<51, OrtStatus*(OrtValue*, void**)>;
using GetDimensionsCount = Entry<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*)>;
using GetDimensions = Entry<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)>;
using GetTensorTypeAndShape = Entry<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>;
using KernelInfoGetAttributeFloat =
    Entry<85, OrtStatus*(const OrtKernelInfo*, const char*, float*)>;
using KernelContextGetInput = Entry<90, OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**)>;
using KernelContextGetOutput =
    Entry<91, OrtStatus*(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**)>;
using ReleaseStatus = Entry<93, void(OrtStatus*)>;
using ReleaseTensorTypeAndShapeInfo = Entry<99, void(OrtTensorTypeAndShapeInfo*)>;
using KernelInfoGetAttributeArrayInt64 =
    Entry<163, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*, size_t*)>;
using HasSessionConfigEntry =
    Entry<237, OrtStatus*(const OrtSessionOptions*, const char*, int*)>;
using GetSessionConfigEntry =
    Entry<238, OrtStatus*(const OrtSessionOptions*, const char*, char*, size_t*)>;
using KernelInfoGetConstantInput =
    Entry<249, OrtStatus*(const OrtKernelInfo*, size_t, int*, const OrtValue**)>;
using KernelContextParallelFor =
    Entry<274, OrtStatus*(const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>;

struct CustomOp;
// CustomOpDomain_Add takes our operator where it says OrtCustomOp.
using CustomOpDomainAdd = Entry<27, OrtStatus*(OrtCustomOpDomain*, const CustomOp*)>;

// OrtApiBase.
struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// An operator and its callbacks: OrtCustomOp. Those of a version above kVersion are never read.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const OrtKernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  int (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  int (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const CustomOp*, size_t);
  int (*GetOutputCharacteristic)(const CustomOp*, size_t);
  int (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  OrtStatus* (*CreateKernelV2)(const CustomOp*, const Api*, const OrtKernelInfo*, void**);
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const CustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};

}  // namespace tokexport::abi
