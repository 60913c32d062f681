// Argohealth reads {"script": …, "objects": […]} as JSON from stdin and writes, as a JSON array of
// strings, the health that the script computes of each object: as Argo CD does it, with the same
// interpreter of Lua and the object as the global obj.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	lua "github.com/yuin/gopher-lua"
)

type question struct {
	Script  string `json:"script"`
	Objects []any  `json:"objects"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var asked question
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		return err
	}
	healths := make([]string, 0, len(asked.Objects))
	for _, object := range asked.Objects {
		health, err := compute(asked.Script, object)
		if err != nil {
			return err
		}
		healths = append(healths, health)
	}
	return json.NewEncoder(os.Stdout).Encode(healths)
}

func compute(script string, object any) (string, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable,
	} {
		state.Push(state.NewFunction(open))
		state.Push(lua.LString(name))
		state.Call(1, 0)
	}
	state.SetGlobal("obj", value(state, object))
	if err := state.DoString(script); err != nil {
		return "", err
	}
	answer, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return "", fmt.Errorf("the script returned %s, not a table", state.Get(-1).Type())
	}
	return state.GetField(answer, "status").String(), nil
}

func value(state *lua.LState, of any) lua.LValue {
	switch each := of.(type) {
	case bool:
		return lua.LBool(each)
	case float64:
		return lua.LNumber(each)
	case string:
		return lua.LString(each)
	case []any:
		table := state.NewTable()
		for _, item := range each {
			table.Append(value(state, item))
		}
		return table
	case map[string]any:
		table := state.NewTable()
		for name, item := range each {
			table.RawSetString(name, value(state, item))
		}
		return table
	}
	return lua.LNil
}
