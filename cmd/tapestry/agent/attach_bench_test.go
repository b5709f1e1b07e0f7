package agent

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"
)

// BenchmarkAdd measures what a pod waits for: ADD by the executable, from start to end of the process, with a real
// agent, its journal on the disk and a keeper. VERSION measures the start of the executable alone.
func BenchmarkAdd(b *testing.B) {
	n := newMachine(b)
	n.start()
	n.ready()
	var version, add, del []time.Duration
	measure := func(list *[]time.Duration, f func()) {
		start := time.Now()
		f()
		*list = append(*list, time.Since(start))
	}
	for i := 0; b.Loop(); i++ {
		s := n.sandbox(fmt.Sprint("c", i), fmt.Sprint("p", i))
		measure(&version, func() {
			cmd := exec.Command(n.exe)
			cmd.Env = append(os.Environ(), roleVar+"=plugin", "CNI_COMMAND=VERSION")
			if err := cmd.Run(); err != nil {
				b.Fatal(err)
			}
		})
		measure(&add, func() { s.works("ADD") })
		measure(&del, func() { s.works("DEL") })
		s.ns.Close()
	}
	for name, list := range map[string][]time.Duration{"version": version, "add": add, "del": del} {
		slices.Sort(list)
		b.ReportMetric(float64(list[len(list)/2].Microseconds())/1000, name+"-p50-ms")
		b.ReportMetric(float64(list[len(list)*99/100].Microseconds())/1000, name+"-p99-ms")
	}
}
