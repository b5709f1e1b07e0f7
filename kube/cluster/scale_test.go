//go:build !race

package cluster

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/clustertest"
	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/services"
)

const (
	scaleServices  = 5000
	scaleEndpoints = 10 // of each Service
	scaleEnv       = "TAPESTRY_SCALE_SERVER"
)

// TestScaleServer is the API server of TestScale. It runs in a process of its own, so that its memory is not counted.
func TestScaleServer(t *testing.T) {
	mode := os.Getenv(scaleEnv)
	if mode == "" {
		t.Skip("it is started by TestScale")
	}
	s := clustertest.New(t)
	s.Streams = mode == "streams"
	for i := range scaleServices {
		s.Put(largeService(i), largeSlice(i))
	}
	n := node("n1")
	s.Put(n)
	fmt.Println("kubeconfig", s.Kubeconfig())
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() { // the number of a Service to change
		i, _ := strconv.Atoi(in.Text())
		slice := largeSlice(i)
		slice.Endpoints = slice.Endpoints[1:]
		s.Put(slice)
	}
}

func largeService(i int) *corev1.Service {
	ip := fmt.Sprintf("10.96.%d.%d", i/250, i%250+1)
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: fmt.Sprintf("service-%05d", i), Labels: map[string]string{"app": "x", "team": "y"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:ports":{},"f:selector":{}}}`)}},
			Annotations:   map[string]string{"kubectl.kubernetes.io/last-applied-configuration": strings.Repeat("x", 400)},
		},
		Spec: corev1.ServiceSpec{
			ClusterIP: ip, ClusterIPs: []string{ip}, Type: corev1.ServiceTypeClusterIP, Selector: map[string]string{"app": "x"},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
}

func largeSlice(i int) *discoveryv1.EndpointSlice {
	name, port, proto := "http", int32(8080), corev1.ProtocolTCP
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: fmt.Sprintf("service-%05d-abcde", i),
			Labels:          map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("service-%05d", i), discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io", "app": "x"},
			Annotations:     map[string]string{corev1.EndpointsLastChangeTriggerTime: "2026-01-01T00:00:00Z"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Service", Name: fmt.Sprintf("service-%05d", i), UID: "8f6c9a52-aaaa-bbbb-cccc-000000000000"}},
			ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: "kube-controller-manager", FieldsV1: metav1.NewFieldsV1(strings.Repeat("x", 500))}},
		},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &proto}},
	}
	for j := range scaleEndpoints {
		k := i*scaleEndpoints + j
		ready, node, zone := true, fmt.Sprintf("node-%03d", k%200), "zone-a"
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{fmt.Sprintf("10.%d.%d.%d", 128+k/62500, k/250%250, k%250+1)},
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready}, NodeName: &node, Zone: &zone,
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: fmt.Sprintf("deployment-%05d-%05d", i, j), UID: types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", k))},
		})
	}
	return s
}

// TestScale measures memory and time with 5,000 Services of 10 endpoints, from the first request to compiled tables.
func TestScale(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	for _, mode := range []string{"pages", "streams"} {
		t.Run(mode, func(t *testing.T) { scale(t, mode) })
	}
}

func scale(t *testing.T, mode string) {
	server := exec.Command(os.Args[0], "-test.run=^TestScaleServer$")
	server.Env = append(os.Environ(), scaleEnv+"="+mode)
	stdin, err := server.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = stdin.Close()
		_, _ = io.Copy(io.Discard, stdout)
		_ = server.Wait()
	}()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig := strings.Fields(line)[1]

	debug.FreeOSMemory()
	rss0, heap0 := resident(t), heap()
	peak := make(chan int)
	quit := make(chan struct{})
	go func() { // records the peak
		most := 0
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				peak <- most
				return
			case <-tick.C:
				most = max(most, resident(t))
			}
		}
	}()
	start := time.Now()
	c, err := New(Options{Node: "n1", Kubeconfig: kubeconfig, State: t.TempDir(), SecretsOf: translate.IngressSecrets})
	if err != nil {
		t.Fatal(err)
	}
	var translator translate.Translator
	var table *services.Table
	compiled := make(chan int, 16)
	ctx, stop := context.WithCancel(t.Context())
	defer func() { // it writes to its directory until the end
		stop()
		for range compiled {
		}
	}()
	go func() {
		defer close(compiled)
		_ = c.Run(ctx, func(objs kube.Objects, _ []kube.Problem) {
			r := translator.Translate(objs, translate.Options{Node: "n1"})
			table, _ = table.Update(r.Services)
			compiled <- objs.EndpointSlices.Len()
		})
	}()
	if n := <-compiled; n != scaleServices {
		t.Errorf("%d slices at first", n)
	}
	took := time.Since(start)
	close(quit)
	most := <-peak
	start = time.Now()
	for i := range 10 {
		fmt.Fprintln(stdin, i*100)
		<-compiled
	}
	change := time.Since(start) / 10
	debug.FreeOSMemory()
	rss, live := resident(t), heap()
	t.Logf("%d Services x %d endpoints, %s: tables after %v, a change after %v; resident %d MB more (%d at most), heap %d MB more",
		scaleServices, scaleEndpoints, mode, took.Round(time.Millisecond), change.Round(10*time.Microsecond), (rss-rss0)>>20, (most-rss0)>>20, (live-heap0)>>20)
	if (rss-rss0)>>20 > 100 { // an idle agent takes 30
		t.Errorf("resident memory grew by %d MB, want less than 100", (rss-rss0)>>20)
	}
	runtime.KeepAlive(table)
}

func resident(t *testing.T) int {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Error(err)
		return 0
	}
	n, _ := strconv.Atoi(strings.Fields(string(data))[1])
	return n * os.Getpagesize()
}

func heap() int {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}
