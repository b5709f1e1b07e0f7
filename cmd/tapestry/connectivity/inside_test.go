package connectivity

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/kube/stage"
)

// inAPod runs the program as a pod of the test does, and returns its output.
func inAPod(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "/proc/self/exe", args...).Output()
	if err != nil {
		t.Errorf("%v: %v", args, err)
	}
	return string(out)
}

// TestInside starts the server as the stage does, and asks it as the plan does. The plan must understand the output.
func TestInside(t *testing.T) {
	server := exec.Command("/proc/self/exe", stage.Arguments("near", true)...)
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(server.Process.Signal(syscall.SIGTERM), server.Wait()); err != nil {
			t.Errorf("the server: %v", err)
		}
	}()
	s := twoNodes()
	s.Nodes = nil
	delete(s.Pods, "far")
	for name, p := range s.Pods {
		p.Addrs = addresstest.Addrs("127.0.0.1", "::1")
		s.Pods[name] = p
	}
	asked := map[string]int{}
	for _, c := range Plan(s, "") {
		if c.Group != "pod-pod" {
			continue
		}
		problem := "not asked"
		for problem != "" && t.Context().Err() == nil {
			if problem = c.Judge(inAPod(t, c.Args...)); problem != "" && problem != "refused" {
				t.Fatalf("%v: %s", c.Args, problem)
			}
		}
		asked[strings.Fields(c.Name)[0]]++
	}
	if asked["tcp"] != 2 || asked["udp"] != 2 {
		t.Errorf("asked %v, want TCP and UDP over both families", asked)
	}
	if out := inAPod(t, inPod("ask", "--times", "3", "tcp", "127.0.0.1:9000")...); strings.Count(out, `"pod":"near"`) != 3 {
		t.Errorf("asked three times: %s", out)
	}
	if out := inAPod(t, inPod("ask", "tcp", "127.0.0.1:9001")...); !strings.Contains(out, `"error":"refused"`) {
		t.Errorf("a closed port: %s", out)
	}
	if out := inAPod(t, inPod("resolve", "host", "127.0.0.1")...); out != `{"answers":["127.0.0.1"]}`+"\n" {
		t.Errorf("resolved %s", out)
	}
}

func TestInsideGet(t *testing.T) {
	h := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://elsewhere.invalid/", http.StatusFound)
	}))
	defer h.Close()
	if out := inAPod(t, inPod("get", h.URL)...); out != `{"status":302}`+"\n" {
		t.Errorf("got %s, want the redirect's own status, whatever the certificate", out)
	}
	h.Close()
	if out := inAPod(t, inPod("get", h.URL)...); out != `{"status":0,"error":"refused"}`+"\n" {
		t.Errorf("of a server that is gone: %s", out)
	}
}
