// A fake NCCL: its functions record their calls and return the results that a test sets.
// Compiled after nccl.h, this also checks that they are declared as in NCCL.

#include <atomic>
#include <cstdarg>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <unistd.h>

#ifndef NCCL_H_
typedef enum { ncclSuccess = 0, ncclInternalError = 3 } ncclResult_t;
typedef enum { ncclUint8 = 1 } ncclDataType_t;
typedef struct { char internal[128]; } ncclUniqueId;
typedef struct ncclComm* ncclComm_t;
typedef struct CUstream_st* cudaStream_t;
typedef struct {
    size_t size;
    unsigned magic, version;
    int blocking, cgaClusterSize, minCTAs, maxCTAs;
    const char* netName;
} ncclConfig_t;
#endif

extern "C" {

// Set by the test.
char failing[64];             // the function that fails,
int failure;                  // and its result
char blocking[64];            // the function that blocks until ncclCommAbort
int async_error;              // the result of ncclCommGetAsyncError
char warning[128];            // the result of ncclGetLastError
// Read by the test.
char calls[4096];             // one line for each call, with its arguments
char joined[128];             // the id of the last communicator
std::atomic<int> blocked;     // `blocking` was called

static std::atomic<int> aborted;

static ncclResult_t called(const char* function, const char* format = "", ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    strcat(strcat(strcat(calls, function), line), "\n");
    if (!strcmp(function, blocking)) {
        blocked = 1;
        for (int round = 0; !aborted; ++round) {
            if (round == 10000) return ncclInternalError;  // no thread has aborted for ten seconds
            usleep(1000);
        }
    }
    return strcmp(function, failing) ? ncclSuccess : static_cast<ncclResult_t>(failure);
}

ncclResult_t ncclGetVersion(int* version) {
    *version = 23004;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    for (int i = 0; i < 128; ++i) id->internal[i] = static_cast<char>(255 - i);
    return called("ncclGetUniqueId");
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int nranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
    memcpy(joined, id.internal, sizeof joined);
    *comm = reinterpret_cast<ncclComm_t>(0x7fff12345678);
    return called("ncclCommInitRankConfig",
                  " %d %d size=%zu magic=%x version=%u blocking=%d cga=%d ctas=%d-%d net=%p", nranks,
                  rank, config->size, config->magic, config->version, config->blocking,
                  config->cgaClusterSize, config->minCTAs, config->maxCTAs,
                  static_cast<const void*>(config->netName));
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
    return called("ncclCommFinalize", " %p", static_cast<void*>(comm));
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    return called("ncclCommDestroy", " %p", static_cast<void*>(comm));
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
    ncclResult_t result = called("ncclCommAbort", " %p", static_cast<void*>(comm));
    aborted = 1;
    return result;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* found) {
    *found = static_cast<ncclResult_t>(async_error);
    return called("ncclCommGetAsyncError", " %p", static_cast<void*>(comm));
}

ncclResult_t ncclSend(const void* buffer, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
    return called("ncclSend", " %p %zu %d %d %p %p", buffer, count, static_cast<int>(type), peer,
                  static_cast<void*>(comm), static_cast<void*>(stream));
}

ncclResult_t ncclRecv(void* buffer, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    return called("ncclRecv", " %p %zu %d %d %p %p", buffer, count, static_cast<int>(type), peer,
                  static_cast<void*>(comm), static_cast<void*>(stream));
}

ncclResult_t ncclGroupStart() { return called("ncclGroupStart"); }

ncclResult_t ncclGroupEnd() { return called("ncclGroupEnd"); }

const char* ncclGetErrorString(ncclResult_t result) {
    static char text[32];
    snprintf(text, sizeof text, "text of %d", static_cast<int>(result));
    return text;
}

const char* ncclGetLastError(ncclComm_t) { return warning; }
}
