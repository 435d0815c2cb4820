package main

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// order is what a test wants of the simulator.
type order struct {
	Do     string `json:"do"`     // calls, call, task, http, delay, machine
	Name   string `json:"name"`   // of the method, task, kind of fault, or machine
	Fault  string `json:"fault"`  // the answer; empty: none
	Millis int    `json:"millis"` // the time it takes
	Times  int    `json:"times"`  // how often; 0: always
	Status int    `json:"status"` // of HTTP
}

var (
	mu      sync.Mutex
	counts  = map[string]int{}
	onCalls = map[string]*order{}
	onTasks = map[string]*order{}
	onHTTP  *order
	gets    []string
	latest  types.ManagedObjectReference
)

var nobody = types.ManagedObjectReference{Type: "Folder", Value: "group-d1"}

var faults = map[string]func() types.BaseMethodFault{
	"MethodNotFound": func() types.BaseMethodFault { return &types.MethodNotFound{Receiver: nobody, Method: "it"} },
	"NoPermission":   func() types.BaseMethodFault { return &types.NoPermission{Object: nobody} },
	"TaskInProgress": func() types.BaseMethodFault { return &types.TaskInProgress{Task: latest} },
	"FileFault":      func() types.BaseMethodFault { return &types.FileFault{File: "full"} },
	"NotAuthenticated": func() types.BaseMethodFault {
		return &types.NotAuthenticated{NoPermission: types.NoPermission{Object: nobody}}
	},
}

func (o order) obey() interface{} {
	mu.Lock()
	defer mu.Unlock()
	switch o.Do {
	case "calls": // how often each method was called since this was asked
		was := counts
		counts = map[string]int{}
		return was
	case "gets": // the files that were asked for, with their queries
		was := gets
		gets = nil
		return was
	case "call":
		onCalls[o.Name] = &o
	case "task":
		onTasks[o.Name] = &o
	case "http":
		onHTTP = &o
	case "delay":
		atomic.StoreInt64(&simulator.TaskDelay, int64(o.Millis)*int64(time.Millisecond))
	case "machine":
		o.change()
	}
	return true
}

// change sets what no call can.
func (o order) change() {
	for _, found := range simulator.Map.All("VirtualMachine") {
		machine := found.(*simulator.VirtualMachine)
		if machine.Name != o.Name {
			continue
		}
		var change types.PropertyChange
		switch o.Fault {
		case "question":
			question := types.VirtualMachineQuestionInfo{Id: "1", Text: "Did you move it,\n or copy it?"}
			change = types.PropertyChange{Name: "runtime.question", Val: &question}
		default:
			state := types.VirtualMachineConnectionState(o.Fault)
			change = types.PropertyChange{Name: "runtime.connectionState", Val: state}
		}
		simulator.Map.WithLock(machine, func() {
			simulator.Map.Update(machine, []types.PropertyChange{change})
		})
	}
}

// spend takes one use of a rule; nil when none is left.
func spend(rule *order) *order {
	if rule == nil || rule.Times < 0 {
		return nil
	}
	if rule.Times == 1 {
		rule.Times = -1
	} else if rule.Times > 1 {
		rule.Times--
	}
	return rule
}

func follow(rules map[string]*order, name string) types.BaseMethodFault {
	mu.Lock()
	rule := spend(rules[name])
	mu.Unlock()
	if rule == nil {
		return nil
	}
	time.Sleep(time.Duration(rule.Millis) * time.Millisecond)
	if make, ok := faults[rule.Fault]; ok {
		return make()
	}
	return nil
}

func onCall(method *simulator.Method) types.BaseMethodFault {
	mu.Lock()
	counts[method.Name]++
	mu.Unlock()
	return follow(onCalls, method.Name)
}

func onTask(task *simulator.Task) types.BaseMethodFault {
	mu.Lock()
	latest = task.Self
	mu.Unlock()
	return follow(onTasks, strings.TrimPrefix(task.Info.DescriptionId, "VirtualMachine."))
}

// withFaults notes the files that are asked for, and answers as it was told.
func withFaults(inner http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/folder/") {
			inner.ServeHTTP(w, r)
			return
		}
		mu.Lock()
		gets = append(gets, r.RequestURI+" "+r.Header.Get("Cookie"))
		rule := spend(onHTTP)
		mu.Unlock()
		switch {
		case rule == nil:
			inner.ServeHTTP(w, r)
		case rule.Status == 200: // a part, and then nothing more
			w.Header().Set("Content-Length", "1000000")
			_, _ = w.Write(make([]byte, 1000))
			w.(http.Flusher).Flush()
			time.Sleep(time.Duration(rule.Millis) * time.Millisecond)
			panic(http.ErrAbortHandler)
		default:
			w.WriteHeader(rule.Status)
		}
	})
}
