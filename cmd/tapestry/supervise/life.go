package supervise

import (
	"encoding/json"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lifeVar is the environment variable in which a supervised process finds its Life, as JSON.
	lifeVar = "TAPESTRY_SUPERVISED"
	// tellFD is the descriptor to which a supervised process writes a byte when it serves.
	tellFD = 3
)

// Life is what a supervised process knows of the runs before its own.
type Life struct {
	// Restarts is how often the command was started again since its supervisor began.
	Restarts int `json:"restarts"`
	// Why says how the run before ended, and At when; both are zero in the first run.
	Why string    `json:"why,omitempty"`
	At  time.Time `json:"at,omitzero"`
}

// environ returns env with the Life.
func (l Life) environ(env []string) []string {
	b, err := json.Marshal(l)
	if err != nil {
		panic(err) // it has nothing that JSON lacks
	}
	out := []string{lifeVar + "=" + string(b)}
	for _, e := range env {
		if !strings.HasPrefix(e, lifeVar+"=") {
			out = append(out, e)
		}
	}
	return out
}

// Supervised returns the Life of this process, and false when it has no supervisor.
var Supervised = sync.OnceValues(func() (Life, bool) {
	var l Life
	text, ok := os.LookupEnv(lifeVar)
	if !ok || json.Unmarshal([]byte(text), &l) != nil {
		return Life{}, false
	}
	unix.CloseOnExec(tellFD)
	_ = os.Unsetenv(lifeVar) // it is about this process alone
	return l, true
})

// Serving tells the supervisor, if there is one, that this process serves. Further calls do nothing.
var Serving = sync.OnceFunc(func() {
	if _, ok := Supervised(); !ok {
		return
	}
	f := os.NewFile(tellFD, "supervisor")
	_, _ = f.Write([]byte{'\n'}) // a supervisor that is gone takes this process with it
	_ = f.Close()
})
