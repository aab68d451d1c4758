#include "probe.hpp"

#include <fcntl.h>
#include <sys/vfs.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "env.hpp"
#include "error.hpp"
#include "statx_align.hpp"

namespace sllm {
namespace {

std::string FileSystemName(int descriptor) {
  struct Known {
    uint32_t magic;
    const char* name;
  };
  // From linux/magic.h and statfs(2): those models are commonly kept on.
  constexpr std::array kKnown{
      Known{0xEF53, "ext4"},         Known{0x58465342, "xfs"},       Known{0x9123683E, "btrfs"},
      Known{0x01021994, "tmpfs"},    Known{0x6969, "nfs"},           Known{0x794C7630, "overlay"},
      Known{0x65735546, "fuse"},     Known{0x2FC12FC1, "zfs"},       Known{0xF2F52010, "f2fs"},
      Known{0x0BD00BD0, "lustre"},   Known{0x00C36400, "ceph"},      Known{0xFE534D42, "smb2"},
      Known{0x01021997, "9p"},       Known{0x73717368, "squashfs"},  Known{0x6A656A63, "virtiofs"},
      Known{0x858458F6, "ramfs"},    Known{0xCA451A4E, "bcachefs"},  Known{0xE0F5E1E2, "erofs"},
      Known{0x47504653, "gpfs"},     Known{0x19830326, "beegfs"},    Known{0xFF534D42, "cifs"},
  };
  struct statfs status {};
  if (fstatfs(descriptor, &status) != 0) return "unknown";
  const auto magic = static_cast<uint32_t>(status.f_type);
  for (const Known& known : kKnown) {
    if (known.magic == magic) return known.name;
  }
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "0x%x", magic);
  return text.data();
}

std::unique_ptr<File> OpenOrThrow(const std::string& path) {
  std::unique_ptr<File> file;
  const int code = Env::Default()->Open(path, OpenMode::kBuffered, &file);
  if (code != 0) throw IoError(-code, path, ErrnoText("cannot open file", -code));
  return file;
}

}  // namespace

std::string DirectRefusal(Env* env, const std::string& path, std::unique_ptr<File>* file) {
  std::unique_ptr<File> direct;
  int64_t code = env->Open(path, OpenMode::kDirect, &direct);
  if (code == 0) {
    // Some file systems accept the flag and refuse the read, so one page is read for real.
    const std::unique_ptr<void, void (*)(void*)> page(std::aligned_alloc(kPage, kPage), std::free);
    if (!page) throw std::bad_alloc();
    do {
      code = direct->Read(static_cast<std::byte*>(page.get()), kPage, 0);
    } while (code == -EINTR || code == -EAGAIN);
  }
  if (code < 0) return ErrnoText("O_DIRECT refused", static_cast<int>(-code));
  *file = std::move(direct);
  return "";
}

Probe ProbeFile(const std::string& path) {
  const std::unique_ptr<File> file = OpenOrThrow(path);
  Probe probe;
  probe.file_system = FileSystemName(file->descriptor());
  std::unique_ptr<File> direct;
  probe.reason = DirectRefusal(Env::Default(), path, &direct);
  probe.direct = probe.reason.empty();
  if (probe.direct) probe.direct_align = DirectAlignment(direct->descriptor());
  int error = 0;
  probe.uring = Env::Default()->NewRing(1, &error) != nullptr;
  if (!probe.uring) {
    if (!probe.reason.empty()) probe.reason += "; ";
    probe.reason += ErrnoText("io_uring is not available", error);
  }
  return probe;
}

double FileResidency(const std::string& path) {
  const std::unique_ptr<File> file = OpenOrThrow(path);
  const int64_t size = file->Size();
  if (size < 0) {
    throw IoError(static_cast<int>(-size), path,
                  ErrnoText("cannot get size", static_cast<int>(-size)));
  }
  const double fraction = file->Resident(0, static_cast<uint64_t>(size));
  return fraction < 0 ? 0 : fraction;
}

void EvictFile(const std::string& path) {
  const std::unique_ptr<File> file = OpenOrThrow(path);
  const int code = posix_fadvise(file->descriptor(), 0, 0, POSIX_FADV_DONTNEED);
  if (code != 0) throw IoError(code, path, ErrnoText("cannot drop cached pages", code));
}

}  // namespace sllm
