package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is what figures depend on besides what is measured.
type Machine struct {
	When   time.Time
	Kernel string // its release
	CPU    string // its model
	CPUs   int    // those that this process may use
	Commit string // of this program; "unknown" when nothing says it
	MTU    int    // of pods and of what they are compared with, in bytes
}

// ThisMachine looks at this machine, now.
func ThisMachine() Machine {
	m := Machine{When: time.Now(), Kernel: "unknown", CPU: "unknown", CPUs: runtime.NumCPU(), Commit: commit(), MTU: DefaultMTU}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		m.CPU = cpuModel(string(b))
	}
	return m
}

// String is a line for people.
func (m Machine) String() string {
	return fmt.Sprintf("%s, commit %s, Linux %s, %d x %s, MTU %d", m.When.Format(time.DateOnly), m.Commit, m.Kernel, m.CPUs, m.CPU, m.MTU)
}

// cpuModel finds the first processor's model in /proc/cpuinfo, which calls it differently on each architecture or, on some,
// does not say it.
func cpuModel(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "model name", "Model", "cpu model", "uarch":
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// commit is the one that this program was built from. A program that was built without that is taken to be of the
// repository that it lies in.
func commit() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		if c := revision(info.Settings); c != "" {
			return c
		}
	}
	exe, err := os.Executable()
	if err != nil {
		return "unknown"
	}
	out, err := exec.Command("git", "-C", filepath.Dir(exe), "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// revision is the commit that the go command stamped, with a + when files were changed; "" when it stamped none.
func revision(settings []debug.BuildSetting) string {
	var id, changed string
	for _, s := range settings {
		switch {
		case s.Key == "vcs.revision":
			id = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = "+"
		}
	}
	if id == "" {
		return ""
	}
	return id + changed
}
