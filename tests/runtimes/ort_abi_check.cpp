// Compiles where ort/abi.h says of ONNX Runtime's interface what its own header says.
#include <cstddef>
#include <onnxruntime_c_api.h>
#include <type_traits>

#include "ort/abi.h"

namespace abi = tokexport::abi;

#define HOLDS(entry, name)                                                          \
  static_assert(offsetof(OrtApi, name) == abi::entry::kIndex * sizeof(void*), #name); \
  static_assert(std::is_convertible_v<decltype(OrtApi::name), abi::entry::Pointer>, #name)
// The signature differs in an enumeration, or in the type of the operator.
#define HOLDS_THE_PLACE(entry, name) \
  static_assert(offsetof(OrtApi, name) == abi::entry::kIndex * sizeof(void*), #name)

HOLDS_THE_PLACE(CreateStatus, CreateStatus);
HOLDS_THE_PLACE(CustomOpDomainAdd, CustomOpDomain_Add);
HOLDS(GetErrorMessage, GetErrorMessage);
HOLDS(HasSessionConfigEntry, HasSessionConfigEntry);
HOLDS(GetSessionConfigEntry, GetSessionConfigEntry);
HOLDS(CreateCustomOpDomain, CreateCustomOpDomain);
HOLDS(AddCustomOpDomain, AddCustomOpDomain);
HOLDS(GetTensorMutableData, GetTensorMutableData);
HOLDS(GetDimensionsCount, GetDimensionsCount);
HOLDS(GetDimensions, GetDimensions);
HOLDS(GetTensorTypeAndShape, GetTensorTypeAndShape);
HOLDS(KernelInfoGetAttributeFloat, KernelInfoGetAttribute_float);
HOLDS(KernelContextGetInput, KernelContext_GetInput);
HOLDS(KernelContextGetOutput, KernelContext_GetOutput);
HOLDS(ReleaseStatus, ReleaseStatus);
HOLDS(ReleaseTensorTypeAndShapeInfo, ReleaseTensorTypeAndShapeInfo);
HOLDS(KernelInfoGetAttributeArrayInt64, KernelInfoGetAttributeArray_int64);
HOLDS(KernelInfoGetConstantInput, KernelInfoGetConstantInput_tensor);
HOLDS(KernelContextParallelFor, KernelContext_ParallelFor);

#define SAME_PLACE(name) \
  static_assert(offsetof(OrtCustomOp, name) == offsetof(abi::CustomOp, name), #name)

SAME_PLACE(version);
SAME_PLACE(CreateKernel);
SAME_PLACE(GetName);
SAME_PLACE(GetExecutionProviderType);
SAME_PLACE(GetInputType);
SAME_PLACE(GetInputTypeCount);
SAME_PLACE(GetOutputType);
SAME_PLACE(GetOutputTypeCount);
SAME_PLACE(KernelCompute);
SAME_PLACE(KernelDestroy);
SAME_PLACE(GetInputCharacteristic);
SAME_PLACE(GetOutputCharacteristic);
SAME_PLACE(GetInputMemoryType);
SAME_PLACE(GetVariadicInputMinArity);
SAME_PLACE(GetVariadicInputHomogeneity);
SAME_PLACE(GetVariadicOutputMinArity);
SAME_PLACE(GetVariadicOutputHomogeneity);
SAME_PLACE(CreateKernelV2);
SAME_PLACE(KernelComputeV2);
SAME_PLACE(InferOutputShapeFn);
static_assert(sizeof(OrtCustomOp) >= sizeof(abi::CustomOp));
static_assert(offsetof(OrtApiBase, GetApi) == offsetof(abi::ApiBase, GetApi));

static_assert(ORT_FAIL == abi::kFail);
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT == abi::kFloat);
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 == abi::kInt64);
static_assert(INPUT_OUTPUT_REQUIRED == abi::kRequired);
static_assert(OrtMemTypeDefault == 0);
