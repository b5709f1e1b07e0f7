package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"tapestry.dev/tapestry/cmd/tapestry/app"
	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/serve"
	"tapestry.dev/tapestry/test/userns"
)

// The test binary is every program of the labs under test, the product included. Its agent attaches pods, but carries
// no packets.
func TestMain(m *testing.M) {
	Maybe()
	// Under the race detector every process would otherwise sleep for a second when it ends.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	if len(os.Args) > 1 {
		if run, ok := programs[os.Args[1]]; ok {
			if err := run(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	userns.Main(m)
}

var programs = map[string]func([]string) error{
	"agent":    fakeAgent,
	"keeper":   productProgram,
	"host-tap": productProgram,
	"serve":    serveProgram,
	"get":      getProgram,
	"lookup":   lookupProgram,
}

// productProgram runs the commands of the product that the tests need unchanged.
func productProgram([]string) error {
	os.Exit(app.Run(os.Args))
	return nil
}

// fakeAgent handles descriptors like an agent.
func fakeAgent(args []string) error {
	flags := map[string]string{}
	for i := 0; i+1 < len(args); i += 2 {
		flags[args[i]] = args[i+1]
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	kept, err := keeper.Dial(ctx, flags["--keeper"])
	if err != nil {
		return err
	}
	if err := kept.Claim(ctx, flags["--node"]); err != nil {
		return err
	}
	if _, err := kept.Get("host"); err != nil {
		return err
	}
	ln, err := cni.Listen(flags["--attach-socket"])
	if err != nil {
		return err
	}
	api, err := localapi.Listen(flags["--local-api"], localapi.Options{})
	if err != nil {
		return err
	}
	fmt.Println("fake agent of", flags["--node"])
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return (&localapi.Server{Tables: []localapi.Source{
			localapi.Problems.From(func(context.Context) ([]localapi.Problem, error) { return nil, nil }),
		}}).Serve(ctx, api)
	})
	group.Go(func() error { return (&cni.Server{Attacher: &attacher{kept: kept}}).Serve(ctx, ln) })
	return group.Wait()
}

type attacher struct {
	kept *keeper.Client
}

func (a *attacher) Add(_ context.Context, pod cni.Pod, f *os.File) error {
	if _, err := tap.Check(f); err != nil {
		return err
	}
	meta, err := json.Marshal(pod)
	if err != nil {
		return err
	}
	if err := a.kept.Put("pod/"+pod.Namespace+"/"+pod.Name+"/"+pod.UID, meta, f); err != nil {
		return err
	}
	return f.Close()
}

func (a *attacher) Del(_ context.Context, pod cni.Pod) error {
	return a.kept.Delete("pod/" + pod.Namespace + "/" + pod.Name + "/" + pod.UID)
}

func (a *attacher) Status(context.Context) (cni.Status, error) {
	return cni.Status{Ready: true}, nil
}

func serveProgram(args []string) error {
	var c serve.Config
	for i := 0; i+1 < len(args); i += 2 {
		port, err := strconv.Atoi(args[i+1])
		if err != nil {
			return err
		}
		switch args[i] {
		case "--http":
			c.HTTP = append(c.HTTP, port)
		case "--tcp":
			c.TCP = append(c.TCP, port)
		case "--udp":
			c.UDP = append(c.UDP, port)
		}
	}
	return serve.Run(context.Background(), c)
}

func getProgram(args []string) error {
	client := http.Client{Timeout: testTime}
	resp, err := client.Get(args[0])
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

func lookupProgram(args []string) error {
	addrs, err := (&net.Resolver{PreferGo: true}).LookupHost(context.Background(), args[0])
	if err != nil {
		return err
	}
	fmt.Println(strings.Join(addrs, " "))
	return nil
}

// testTime limits how long a test on a lab may take, also on a busy machine.
const testTime = 2 * time.Minute

// testLab is a lab with one file that the test can edit.
type testLab struct {
	*Client
	t    *testing.T
	file string
	ctx  context.Context
}

func up(t *testing.T, yaml string) *testLab {
	t.Helper()
	file := filepath.Join(t.TempDir(), "lab.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	return upFiles(t, file)
}

func upFiles(t *testing.T, path string) *testLab {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTime)
	t.Cleanup(cancel)
	c, err := Up(ctx, Options{Name: "t", Files: []string{path}, StateDir: t.TempDir(), Product: program(t)})
	if err != nil {
		t.Fatal(err)
	}
	l := &testLab{Client: c, t: t, file: path, ctx: ctx}
	t.Cleanup(func() {
		if t.Failed() {
			if log, err := os.ReadFile(filepath.Join(c.Dir, "supervisor.log")); err == nil {
				t.Logf("supervisor:\n%s", log)
			}
		}
		if err := c.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l
}

func (l *testLab) edit(yaml string) {
	l.t.Helper()
	if err := os.WriteFile(l.file, []byte(yaml), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// ready waits until everything is ready.
func (l *testLab) ready() {
	l.t.Helper()
	if err := l.Wait(l.ctx, testTime); err != nil {
		l.t.Fatal(err)
	}
}

// until waits for a status that ok accepts.
func (l *testLab) until(what string, ok func(*Status) bool) *Status {
	l.t.Helper()
	var last *Status
	err := l.WaitFor(l.ctx, func(st *Status) bool { last = st; return ok(st) })
	if err != nil {
		l.t.Fatalf("%s: %v; %+v", what, err, last)
	}
	return last
}

// run runs a command that must end with the wanted code, and returns what it wrote to stdout.
func (l *testLab) run(where Target, wantCode int, argv ...string) string {
	l.t.Helper()
	out, errout, code, err := l.Output(l.ctx, where, argv...)
	if err != nil {
		l.t.Fatalf("%v: %v", argv, err)
	}
	if code != wantCode {
		l.t.Fatalf("%v: exit code %d, want %d\n%s%s", argv, code, wantCode, out, errout)
	}
	return out
}

func pod(st *Status, key string) *PodStatus {
	for i := range st.Pods {
		if st.Pods[i].Key() == key {
			return &st.Pods[i]
		}
	}
	return &PodStatus{}
}

// program returns the path of a program of the test binary, for use in a lab.
func program(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}
