package bench

import (
	"runtime"
	"strings"
	"testing"
)

func TestCPUModel(t *testing.T) {
	for info, want := range map[string]string{
		"processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 7B13\nmodel name\t: other\n": "AMD EPYC 7B13",
		"processor : 0\nuarch : sifive,u74-mc\n":                                                        "sifive,u74-mc",
		"processor\t: 0\nBogoMIPS\t: 50.00\n":                                                           runtime.GOARCH,
		"":                                                                                              runtime.GOARCH,
	} {
		if got := cpuModel(info); got != want {
			t.Errorf("%q: got %q, want %q", info, got, want)
		}
	}
}

func TestThisMachine(t *testing.T) {
	m := ThisMachine()
	if m.CPUs < 1 || m.Kernel == "unknown" || m.CPU == "unknown" || m.When.IsZero() || m.Commit == "" {
		t.Errorf("%+v", m)
	}
	if s := m.String(); !strings.Contains(s, m.Kernel) || strings.Contains(s, "\n") {
		t.Errorf("%q", s)
	}
}
