package bench

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/version"
)

// Machine describes the machine and the program that figures depend on.
type Machine struct {
	When   time.Time
	Kernel string // its release
	CPU    string // its model
	CPUs   int    // those that this process may use
	Commit string // or tag of this program, see package version
	MTU    int    // of pods and of what they are compared with, in bytes
}

// ThisMachine describes this machine as it is now.
func ThisMachine() Machine {
	m := Machine{When: time.Now(), Kernel: "unknown", CPU: "unknown", CPUs: runtime.NumCPU(), Commit: version.String(), MTU: DefaultMTU}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		m.CPU = cpuModel(string(b))
	}
	return m
}

// String returns a line for people.
func (m Machine) String() string {
	return fmt.Sprintf("%s, commit %s, Linux %s, %d x %s, MTU %d", m.When.Format(time.DateOnly), m.Commit, m.Kernel, m.CPUs, m.CPU, m.MTU)
}

// cpuModel finds the first processor's model in /proc/cpuinfo. The name of the line depends on the architecture, and
// some architectures have no such line.
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
