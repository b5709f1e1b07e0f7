package follow

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tapestry.dev/tapestry/kube/cluster"
	"tapestry.dev/tapestry/kube/cluster/clustertest"
	"tapestry.dev/tapestry/kube/codec"
	"tapestry.dev/tapestry/services"
)

// flapEnv says to BenchmarkFlapServer of how many endpoints the Service is that flaps.
const flapEnv = "TAPESTRY_FLAP_SERVER"

// flapEvery is the pause between two changes of a slice that flaps.
const flapEvery = 10 * time.Millisecond

// BenchmarkFlapServer is the API server of BenchmarkFlap. It runs in a process of its own, so that what it uses is not
// counted, and measures nothing: by itself it ends with its input. Each line of that is a command: "flap" has a slice
// flap from then on, and another word is the name of a Service that comes.
func BenchmarkFlapServer(t *testing.B) {
	n := 10
	_, _ = fmt.Sscan(os.Getenv(flapEnv), &n)
	objs, err := large(n)
	if err != nil {
		t.Fatal(err)
	}
	s := clustertest.New(t)
	for obj := range objs.All() {
		s.Put(obj)
	}
	fmt.Println("\nkubeconfig", s.Kubeconfig()) // at the beginning of a line
	whole := objs.EndpointSlices.At(objs.EndpointSlices.Len() - 1)
	less := whole.DeepCopy()
	less.Endpoints = less.Endpoints[1:]
	ended := make(chan struct{})
	defer close(ended)
	in := bufio.NewScanner(os.Stdin)
	for n := 0; in.Scan(); n++ {
		if in.Text() == "flap" {
			go flap(s, ended, whole, less)
			continue
		}
		more, err := codec.Decode("service.yaml", fmt.Appendf(nil, "{apiVersion: v1, kind: Service, metadata: {namespace: other, name: %s}, spec: {clusterIP: 10.98.%d.%d, ports: [{port: 80}]}}",
			in.Text(), n>>8&255, n&255))
		if err != nil {
			t.Fatal(err)
		}
		s.Put(more.Services[0])
	}
}

// flap puts one slice and then the other, until ended is closed.
func flap(s *clustertest.Server, ended <-chan struct{}, forms ...clustertest.Object) {
	tick := time.NewTicker(flapEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ended:
			return
		case <-tick.C:
			s.Put(forms[n%2])
		}
	}
}

// BenchmarkFlap is how long a new Service of somebody takes until it is in the tables, while a slice of another flaps a
// hundred times a second, and how much of a processor the agent's part of it takes meanwhile: reading from the API
// server, translating and applying.
func BenchmarkFlap(b *testing.B) {
	for _, c := range []struct {
		name  string
		n     int
		flaps bool
	}{{"nothing", 1000, false}, {"of-10", 10, true}, {"of-1000", 1000, true}, {"of-100000", 100_000, true}} {
		b.Run(c.name, func(b *testing.B) { benchmarkFlap(b, c.n, c.flaps) })
	}
}

func benchmarkFlap(b *testing.B, n int, flaps bool) {
	server := exec.Command(os.Args[0], "-test.run=^$", "-test.bench=^BenchmarkFlapServer$", "-test.benchtime=1x")
	server.Env = append(os.Environ(), fmt.Sprintf("%s=%d", flapEnv, n))
	stdin, err := server.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := server.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := server.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = stdin.Close()
		_, _ = io.Copy(io.Discard, stdout)
		_ = server.Wait()
	}()
	out, line := bufio.NewReader(stdout), ""
	for !strings.HasPrefix(line, "kubeconfig ") { // what the testing package prints comes first
		if line, err = out.ReadString('\n'); err != nil {
			b.Fatal(err)
		}
	}
	f, _ := newFollower(b)
	defer f.Close()
	source, err := cluster.New(cluster.Options{Node: "n1", Kubeconfig: strings.Fields(line)[1], State: b.TempDir(), Logger: f.o.Log})
	if err != nil {
		b.Fatal(err)
	}
	f.o.Source = source
	ctx, stop := context.WithCancel(b.Context())
	applied, ended := make(chan struct{}, 1), make(chan struct{})
	go func() { defer close(ended); _ = f.Run(ctx, applied) }()
	defer func() { stop(); <-ended }()
	var states atomic.Int64
	until := func(there func(*services.Config) bool) {
		for range applied {
			states.Add(1)
			if f.HasStarted() && there(&f.Node().Config().Services) {
				return
			}
		}
	}
	until(func(*services.Config) bool { return true })
	if flaps {
		fmt.Fprintln(stdin, "flap")
	}
	at, began, used := 0, time.Now(), processor(b)
	for b.Loop() {
		at++
		name := fmt.Sprintf("s%06d", at)
		fmt.Fprintln(stdin, name)
		until(func(c *services.Config) bool {
			for _, s := range c.Services.All() {
				if s.Name == name {
					return true
				}
			}
			return false
		})
	}
	took := time.Since(began)
	b.ReportMetric(float64(processor(b)-used)/float64(took), "processors")
	b.ReportMetric(float64(states.Load())/took.Seconds(), "states/s")
}

// processor returns how much of processors this process has used.
func processor(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
