#include "file_task.hpp"

#include <cerrno>
#include <stdexcept>
#include <utility>

#include "error.hpp"

namespace sllm {

void CheckRequest(const FileRequest& request) {
  const auto fail = [&](const std::string& what) {
    throw std::invalid_argument(request.path + ": " + what);
  };
  if (request.into) {
    if (request.method == Method::kMap) fail("method map cannot read into given memory");
    if (request.into->memory().is_map()) fail("cannot read into a mapped file");
    const size_t need = RegionCapacity(request.expected_size);
    const size_t have = request.into->memory().capacity();
    if (have < need) {
      fail("region of " + std::to_string(have) + " bytes given, " + std::to_string(need) +
           " needed (the file's size rounded up to 4096)");
    }
  }
  if (request.verify != Verify::kNever && !request.crc32c.empty() && request.chunk_size == 0) {
    fail("checksums without a chunk size");
  }
}

FileTask::FileTask(FileRequest request_in, uint64_t block_size)
    : request(std::move(request_in)),
      blocks(PlanBlocks(request.extents, request.expected_size, block_size)),
      block_done(blocks.size(), false) {
  CheckRequest(request);
  if (request.verify != Verify::kNever && !request.crc32c.empty()) {
    sums = std::make_unique<ChunkSums>(request.path, request.expected_size, request.chunk_size,
                                       request.crc32c, blocks);
  }
}

void FileTask::CheckSize() const {
  const int64_t size = cached->Size();
  if (size < 0) {
    const int code = static_cast<int>(-size);
    throw IoError(code, request.path, ErrnoText("cannot get size", code));
  }
  if (static_cast<uint64_t>(size) != request.expected_size) {
    throw IoError(EIO, request.path,
                  "file has " + std::to_string(size) + " bytes, expected " +
                      std::to_string(request.expected_size) +
                      ": it is incomplete or was replaced");
  }
}

void FileTask::Prepare(const Setup& setup) {
  const int code = setup.env->Open(request.path, OpenMode::kBuffered, &cached);
  if (code != 0) throw IoError(-code, request.path, ErrnoText("cannot open file", -code));
  CheckSize();
  choice = ChooseMethod({setup.env, request.path, cached.get(), blocks, request.method,
                         request.into == nullptr, setup.ring_error});
  if (choice.method == Method::kMap && request.verify == Verify::kCopied) sums.reset();
  const Busy busy(&allocate_clock);
  if (request.into) {
    region = request.into;
  } else if (choice.method == Method::kMap && request.expected_size != 0) {
    region = std::make_shared<Region>(
        Memory::MapFile(setup.env, cached.get(), request.path, request.expected_size),
        request.expected_size);
  } else if (setup.pool != nullptr) {
    region = setup.pool->Allocate(request.expected_size, setup.huge_pages, false);
  } else {
    region = std::make_shared<Region>(
        Memory::Anonymous(setup.env, RegionCapacity(request.expected_size), setup.huge_pages),
        request.expected_size);
  }
}

}  // namespace sllm
